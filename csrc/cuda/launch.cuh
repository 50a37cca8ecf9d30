// What the launchers of chip.cu, sweep.cu and cluster.cu share.
#pragma once

#include "launch.h"
#include "plan.cuh"

namespace nanonet::cuda {

// More than 48 KB of dynamic shared memory has to be allowed once for each kernel and device.
template <auto kKernel>
void allow_shared_memory(const Launch& launch) {
  static bool done[kMaxDevices];
  if (done[launch.device_index]) return;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.device.shared_of_block)));
  done[launch.device_index] = true;
}

// Launches blocks that each work on whole rows.
template <auto kKernel>
void launch_blocks(const Launch& launch, int threads, int64_t shared_bytes) {
  allow_shared_memory<kKernel>(launch);
  kKernel<<<launch.plan.blocks, threads, size_t(shared_bytes), launch.stream>>>(launch.call);
  check(cudaGetLastError());
}

}  // namespace nanonet::cuda
