// The instruction set in use: the best the processor has, or the one asked for by name.
#pragma once

namespace srk {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

inline Isa& current_isa() {
  static Isa isa = best_isa();
  return isa;
}

#if defined(__x86_64__)
#define SRK_CALL(function, arguments)       \
  switch (::srk::current_isa()) {           \
    case ::srk::Isa::avx512:                \
      ::srk::avx512::function(arguments);   \
      break;                                \
    case ::srk::Isa::avx2:                  \
      ::srk::avx2::function(arguments);     \
      break;                                \
    case ::srk::Isa::baseline:              \
      ::srk::baseline::function(arguments); \
      break;                                \
  }
#else
#define SRK_CALL(function, arguments) ::srk::baseline::function(arguments)
#endif

}  // namespace srk
