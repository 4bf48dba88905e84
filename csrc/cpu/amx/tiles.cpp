#include "tiles.h"

#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace srk::amx {

bool available() {
#if defined(__AMX_BF16__)
  static const bool found = [] {
    // __builtin_cpu_supports knows AMX in new compilers only.
    unsigned eax, ebx, ecx, edx, more;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    const bool tiles = (edx >> 22 & 1) && (edx >> 24 & 1);
    if (!__get_cpuid_count(7, 1, &more, &ebx, &ecx, &edx)) return false;
    const bool rounds = more >> 5 & 1;                          // AVX512_BF16
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM)
    return tiles && rounds && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return found;
#else
  return false;
#endif
}

}  // namespace srk::amx
