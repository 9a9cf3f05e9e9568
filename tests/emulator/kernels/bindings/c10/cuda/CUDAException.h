// Replaces torch's header, which its builds without CUDA lack: the check of a launch.
#pragma once

#include <functional>

#include "simt/types.h"

namespace genimg::bindings {

// Runs `launch` with the memory that the op has allocated; throws the emulator's error.
void check(const std::function<cudaError_t()>& launch);

}  // namespace genimg::bindings

#define C10_CUDA_CHECK(launch) genimg::bindings::check([&] { return launch; })
