// When to write past the caches. Ordinary stores read each line before they overwrite it; streaming
// ones (simd.h) do not, but whoever reads the output next has to fetch it from memory.
#pragma once
#include <cstdint>

#include "simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace srk::SRK_ISA {

// Whether a sample of the pages that hold [p, p + bytes) has memory yet. An allocator's fresh pages
// get theirs, zeroed and so in the caches, at the first store: streaming there takes 1.6 times as
// long as ordinary stores, while on pages that have been written before it takes half.
inline bool pages_present(const void* p, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), first = reinterpret_cast<uintptr_t>(p);
  constexpr int kSamples = 5;
  for (int i = 0; i < kSamples; ++i) {
    const uintptr_t at =
        (first + uintptr_t(bytes - 1) / (kSamples - 1) * uintptr_t(i)) & ~(page - 1);
    unsigned char present = 0;
    if (mincore(reinterpret_cast<void*>(at), page, &present) != 0 || !(present & 1)) return false;
  }
#endif
  return true;
}

// Smallest output that the caches would not hand to its reader anyway.
constexpr int64_t kStreamBytes = int64_t(8) << 20;

inline bool aligned_for_streaming(const void* p, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(p) | uintptr_t(row_bytes)) % SRK_VECTOR_BYTES == 0;
}

inline bool worth_streaming(const void* p, int64_t bytes) {
  return bytes >= kStreamBytes && pages_present(p, bytes);
}

}  // namespace srk::SRK_ISA
