// nanonet._C: importing it registers the ops (register.cpp) and chooses the instruction set.
#include <pybind11/pybind11.h>

#include "amx.h"
#include "isa.h"
#include "pool.h"

#define NN_STRING_(x) #x
#define NN_STRING(x) NN_STRING_(x)

static pybind11::dict build_info() {
  pybind11::list compiled, supported, architectures;
  for (const nanonet::Kernels* kernels : nanonet::kernels_compiled()) compiled.append(kernels->name);
  for (const nanonet::Kernels* kernels : nanonet::kernels_supported()) supported.append(kernels->name);
  pybind11::dict info;
  info["version"] = NN_STRING(NANONET_VERSION);
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["isa_compiled"] = compiled;
  info["isa_supported"] = supported;
  info["isa_in_use"] = nanonet::kernels_in_use().name;
  info["amx"] = nanonet::amx_ready();
  info["cuda_arches"] = architectures;
  return info;
}

PYBIND11_MODULE(_C, module) {
  // an unknown NANONET_CPU_ISA or NANONET_POOL_MB must fail here, not in the first step
  nanonet::kernels_in_use();
  nanonet::Pool::instance();
  module.doc() = "The compiled CPU kernels of nanonet.";
  module.def("build_info", &build_info, "Version, compiler, instruction sets compiled in, supported by this CPU, and in use, CUDA architectures.");
  module.def("release_pool", [] { return nanonet::Pool::instance().release(); }, "Free what waits for the next gradient.");
}
