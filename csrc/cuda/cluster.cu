// Rows in the shared memory of a cluster of blocks.
#include "launch.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl>
static void run(const Launch& l) {
  static bool allowed[kMaxDevices];
  const auto kernel = distill_chip_kernel<kK, kKl, true>;
  if (l.device_index >= kMaxDevices || !allowed[l.device_index])
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  allow_shared_memory(kernel, l, allowed);

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(l.plan.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(l.plan.blocks));
  config.blockDim = dim3(threads_of(kK, kKl));
  config.dynamicSmemBytes = size_t(shared_bytes<BlockShared<kK>>()) + size_t(stage_bytes(l.call, l.plan.cluster));
  config.stream = l.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;

  // A cluster lives within one group of processors, and those are not all of one size: what does not fit at once would
  // be a second wave of a few clusters while the rest of the chip waits.
  int fitting = 0;
  check(cudaOccupancyMaxActiveClusters(&fitting, kernel, &config));
  if (fitting < 1) throw std::runtime_error("nanonet: no cluster of " + std::to_string(l.plan.cluster) + " blocks fits");
  if (fitting * l.plan.cluster < l.plan.blocks) config.gridDim.x = unsigned(fitting * l.plan.cluster);
  check(cudaLaunchKernelEx(&config, kernel, l.call));
}

void launch_cluster(const Launch& l) {
  with_kernel(l.call, [&]<int kK, bool kKl>() { run<kK, kKl>(l); });
}

}  // namespace nanonet::cuda
