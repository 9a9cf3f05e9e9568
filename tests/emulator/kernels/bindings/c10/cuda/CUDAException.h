// In place of torch's, which its builds without CUDA lack: what a launch comes to.
#pragma once

#include <functional>

#include "simt/types.h"

namespace genimg::bindings {

// Runs `launch` on the memory that the op has by now; throws what the emulator says of it.
void check(const std::function<cudaError_t()>& launch);

}  // namespace genimg::bindings

#define C10_CUDA_CHECK(launch) genimg::bindings::check([&] { return launch; })
