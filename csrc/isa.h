// Which instruction set runs: the widest that was compiled in and that this CPU has, or the one that the
// environment variable NANONET_CPU_ISA names.
#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace nanonet {

std::vector<const Kernels*> kernels_compiled();
std::vector<const Kernels*> kernels_supported();  // by this CPU, widest last

// Throws std::runtime_error where NANONET_CPU_ISA names a set that is not compiled in or that the CPU lacks.
const Kernels& kernels_in_use();

}  // namespace nanonet
