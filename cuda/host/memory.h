// Memory of the engine. Fresh pages from the system cost more than many of the stages that fill them, so freed blocks
// are kept for the next call, up to a limit.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <utility>

namespace fs {

void* acquire(size_t bytes, size_t* capacity);  // aligned to 64 bytes; throws std::bad_alloc
void give_back(void* block, size_t capacity);
int64_t kept_bytes(bool release);

// Asks for large pages below the caller's memory, about to be written for the first time; a wish only.
void prefer_large_pages(void* data, int64_t bytes);
// The same, then zeroes it with all threads. Null is left alone.
void zero(void* data, int64_t bytes);

// An array of plain values, not initialised.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t count) { reset(count); }
  Array(Array&& other) noexcept { swap(other); }
  Array& operator=(Array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Array() { clear(); }

  void reset(int64_t count) {
    clear();
    data_ = static_cast<T*>(acquire(static_cast<size_t>(count > 0 ? count : 1) * sizeof(T), &capacity_));
  }
  void clear() {
    if (data_) give_back(data_, capacity_);
    data_ = nullptr;
  }
  int64_t capacity() const { return static_cast<int64_t>(capacity_ / sizeof(T)); }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void swap(Array& other) {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
  }

  T* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace fs
