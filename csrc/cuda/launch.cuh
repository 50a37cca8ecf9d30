// What the launchers share.
#pragma once

#include "launch.h"
#include "plan.cuh"

namespace nanonet::cuda {

// Above 48 KB a kernel has to be told once, on every device, how much shared memory it may be launched with.
template <class Kernel>
void allow_shared_memory(Kernel kernel, const Launch& launch, bool (&done)[kMaxDevices]) {
  if (launch.device_index < kMaxDevices && done[launch.device_index]) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.device.shared_of_block)));
  if (launch.device_index < kMaxDevices) done[launch.device_index] = true;
}

}  // namespace nanonet::cuda
