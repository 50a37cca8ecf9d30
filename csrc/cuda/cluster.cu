// Rows in the shared memory of a cluster of blocks.
#include "launch.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl, bool kBfloat16>
static void run(const Launch& l) {
  static bool allowed[kMaxDevices];
  const auto kernel = distill_chip_kernel<kK, kKl, kBfloat16, true>;
  if (l.device_index >= kMaxDevices || !allowed[l.device_index])
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  allow_shared_memory(kernel, l, allowed);

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(l.plan.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(l.plan.blocks));
  config.blockDim = dim3(threads_of(kK, kKl, kBfloat16));
  config.dynamicSmemBytes = size_t(shared_bytes<BlockShared<kK>>()) + size_t(stage_bytes(l.call, l.plan.cluster));
  config.stream = l.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;

  // A cluster lives within one group of processors, and those are not all of one size: what does not fit at once would
  // be a second wave of a few clusters while the rest of the chip waits.
  int fitting = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&fitting, kernel, &config);
  if (status == cudaErrorInvalidClusterSize) cudaGetLastError();
  else check(status);
  if (status != cudaSuccess || fitting < 1) return launch_sweep(l);  // part of a GPU alone may have no group of so many
  if (fitting * l.plan.cluster < l.plan.blocks) config.gridDim.x = unsigned(fitting * l.plan.cluster);
  check(cudaLaunchKernelEx(&config, kernel, l.call));
}

void launch_cluster(const Launch& l) {
  with_kernel(l.call, all_bfloat16(l.call), [&]<int kK, bool kKl, bool kBfloat16>() { run<kK, kKl, kBfloat16>(l); });
}

}  // namespace nanonet::cuda
