// Fibers: every thread of a block has a stack of its own and runs until it hands over. By hand on x86-64, where a switch is
// a dozen instructions; by ucontext elsewhere.
#pragma once
#include <stddef.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fs_shim {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_bytes = 512 * 1024;
#else
constexpr size_t stack_bytes = 128 * 1024;
#endif

#if defined(__x86_64__)
struct Context {
  void* sp = nullptr;
};
// Saves the registers that a call keeps on the stack, stores the stack pointer, and goes on where `to` left off.
extern "C" void fs_shim_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.hidden fs_shim_switch
.globl fs_shim_switch
.type fs_shim_switch, @function
fs_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fs_shim_switch, .-fs_shim_switch
)");
void prepare(Context& context, char* stack, void (*entry)()) {
  // As if `entry` had been called with a return address of 0: below that, where to go, and six registers.
  void** top = reinterpret_cast<void**>(stack + stack_bytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.sp = top;
}
void change(Context& from, Context& to) { fs_shim_switch(&from.sp, to.sp); }
#else
struct Context {
  ucontext_t u{};
};
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.u);
  context.u.uc_stack.ss_sp = stack;
  context.u.uc_stack.ss_size = stack_bytes;
  context.u.uc_link = nullptr;
  makecontext(&context.u, entry, 0);
}
void change(Context& from, Context& to) { swapcontext(&from.u, &to.u); }
#endif

}  // namespace
}  // namespace fs_shim
