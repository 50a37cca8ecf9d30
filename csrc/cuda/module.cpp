// nanonet._C_cuda: importing it registers the CUDA kernels (register.cpp).
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <sstream>

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

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "The compiled CUDA kernels of nanonet.";
  module.def("build_info", &build_info, "CUDA architectures compiled in, and the toolkit's version (13000: 13.0).");
}
