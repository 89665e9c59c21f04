// What is kept from a forward call for its backward.
#pragma once
#include <memory>
#include <vector>

#include "view.h"

namespace fs {

struct Plan {
  std::vector<View> views;
  Array<uint8_t> unhealthy;
};

}  // namespace fs
