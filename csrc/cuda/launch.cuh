// What the launchers share.
#pragma once

#include "launch.h"
#include "plan.cuh"

namespace nanonet::cuda {

// Calls body.operator()<kK, kKl>() for the problem: kl with exactly up to four students, or eight at most; else any
// divergence, four at most.
template <class Body>
void with_kernel(const Call& p, Body body) {
  if (p.divergence != kKl) return body.template operator()<kMaxStudentsOfAny, false>();
  switch (p.K) {
    case 1: return body.template operator()<1, true>();
    case 2: return body.template operator()<2, true>();
    case 3: return body.template operator()<3, true>();
    case 4: return body.template operator()<4, true>();
    default: return body.template operator()<8, true>();
  }
}

// Above 48 KB a kernel has to be told once, on every device, how much shared memory it may be launched with.
template <class Kernel>
void allow_shared_memory(Kernel kernel, const Launch& launch, bool (&done)[kMaxDevices]) {
  if (launch.device_index < kMaxDevices && done[launch.device_index]) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.device.shared_of_block)));
  if (launch.device_index < kMaxDevices) done[launch.device_index] = true;
}

}  // namespace nanonet::cuda
