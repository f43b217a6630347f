#include "simd_avx512.h"

#include "ops_inl.h"

TIDEGATE_OPS(avx512)
