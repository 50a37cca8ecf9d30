// exp and log as glibc had them before 2.29, so that the wheel loads where glibc is 2.28 (see manylinux.cpp).
#pragma once

#include <cstdlib>

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
#endif
