// A libcuda.so.1 that computes nothing: it notes what it is asked and answers as told. For test_nvrtc.py, which shows
// by it that the launcher calls CUDA's driver as CUDA documents, on machines without a driver.
#include <stdint.h>
#include <string.h>

extern "C" {

// What happened, and what the next launches answer (0 when the list has run out).
struct FakeDriver {
  int64_t launches, modules, functions, pushes, pops, synchronised, shared_allowed;
  uint64_t function, stream, params, module_bytes;
  uint32_t grid[3], block[3], shared;
  char name[64];
  int32_t launch_codes[8], next_code, load_code, init_code, synchronise_code;
} fake_driver;

static int cuInit(unsigned) { return fake_driver.init_code; }
static int cuDriverGetVersion(int* v) { return *v = 13000, 0; }
static int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
static int cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 97 ? 232448 : 0, 0; }
static int cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)0xc0, 0; }
static int cuCtxPushCurrent(void*) { return ++fake_driver.pushes, 0; }
static int cuCtxPopCurrent(void**) { return ++fake_driver.pops, 0; }
static int cuModuleLoadData(void** module, const void* image) {
  memcpy(&fake_driver.module_bytes, image, 8);
  *module = (void*)++fake_driver.modules;
  return fake_driver.load_code;
}
static int cuModuleGetFunction(void** function, void*, const char* name) {
  strncpy(fake_driver.name, name, sizeof(fake_driver.name) - 1);
  *function = (void*)(0x100 + ++fake_driver.functions);
  return 0;
}
static int cuFuncSetAttribute(void*, int attribute, int value) {
  if (attribute == 8) fake_driver.shared_allowed = value;
  return 0;
}
static int cuFuncGetAttribute(int* value, int attribute, void*) { return *value = 10 + attribute, 0; }
static int cuStreamSynchronize(void*) { return ++fake_driver.synchronised, fake_driver.synchronise_code; }
static int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** params, void**) {
  FakeDriver& f = fake_driver;
  ++f.launches;
  f.function = (uint64_t)function, f.stream = (uint64_t)stream, f.params = (uint64_t)params, f.shared = shared;
  f.grid[0] = gx, f.grid[1] = gy, f.grid[2] = gz, f.block[0] = bx, f.block[1] = by, f.block[2] = bz;
  return f.next_code < 8 ? f.launch_codes[f.next_code++] : 0;
}

int cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* status) {
  static const struct {
    const char* name;
    void* function;
  } known[] = {
      {"cuInit", (void*)cuInit},
      {"cuDriverGetVersion", (void*)cuDriverGetVersion},
      {"cuDeviceGet", (void*)cuDeviceGet},
      {"cuDeviceGetAttribute", (void*)cuDeviceGetAttribute},
      {"cuDevicePrimaryCtxRetain", (void*)cuDevicePrimaryCtxRetain},
      {"cuCtxPushCurrent", (void*)cuCtxPushCurrent},
      {"cuCtxPopCurrent", (void*)cuCtxPopCurrent},
      {"cuModuleLoadData", (void*)cuModuleLoadData},
      {"cuModuleGetFunction", (void*)cuModuleGetFunction},
      {"cuFuncSetAttribute", (void*)cuFuncSetAttribute},
      {"cuFuncGetAttribute", (void*)cuFuncGetAttribute},
      {"cuStreamSynchronize", (void*)cuStreamSynchronize},
      {"cuLaunchKernel", (void*)cuLaunchKernel},
  };
  for (const auto& k : known) {
    if (strcmp(k.name, symbol) == 0) {
      *function = k.function;
      if (status != nullptr) *status = 0;
      return 0;
    }
  }
  *function = nullptr;
  if (status != nullptr) *status = 1;
  return 500;  // CUDA_ERROR_NOT_FOUND
}
int cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}
}
