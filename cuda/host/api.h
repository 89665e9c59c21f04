// From C++ exceptions to return codes.
#pragma once
#include <exception>
#include <new>
#include <string>

namespace fs {

std::string& last_error();

template <class F>
int guarded(F fn) noexcept {
  try {
    fn();
    return 0;
  } catch (const std::bad_alloc&) {
    last_error() = "out of memory";
  } catch (const std::exception& error) {
    last_error() = error.what();
  } catch (...) {
    last_error() = "unknown error";
  }
  return 1;
}

}  // namespace fs
