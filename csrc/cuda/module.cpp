// nanonet._C_cuda: importing it registers the CUDA kernels (register.cpp).
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <sstream>
#include <stdexcept>

#include "launch.h"

#define NN_STRING_(x) #x
#define NN_STRING(x) NN_STRING_(x)

static pybind11::dict build_info() {
  pybind11::list architectures;
  std::istringstream names(NN_STRING(NANONET_CUDA_ARCHES));
  for (std::string name; std::getline(names, name, ':');) architectures.append(name);
  pybind11::dict info;
  info["cuda_arches"] = architectures;
  info["cuda_toolkit"] = CUDART_VERSION;
  return info;
}

static void use_kernel(std::optional<std::string> name, int cluster) {
  using nanonet::cuda::Regime;
  if (!name) return nanonet::cuda::override_plan({});
  const bool sweep = *name == "sweep", chip = *name == "chip" && cluster == 1, many = *name == "cluster" && cluster > 1;
  if (!sweep && !chip && !many) throw std::invalid_argument("expected chip, sweep, or cluster of 2, 4, 8 or 16 blocks");
  const Regime regime = sweep ? Regime::kSweep : chip ? Regime::kChip : Regime::kCluster;
  nanonet::cuda::override_plan(nanonet::cuda::PlanOverride{regime, cluster});
}

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "The compiled CUDA kernels of nanonet.";
  module.def("build_info", &build_info, "CUDA architectures compiled in, and the toolkit's version (13000: 13.0).");
  module.def("serve", &nanonet::cuda::serve, pybind11::arg("device_index"),
             "Let the kernels serve this device; until then its calls go to nanonet::uncompiled_<op>.");
  module.def("use_kernel", &use_kernel, pybind11::arg("name"), pybind11::arg("cluster") = 1,
             "For measurements: run every loss by the kernel `chip`, `cluster` (of that many blocks) or `sweep`; None: "
             "by the table of plan.cuh. A loss whose rows do not fit raises.");
}
