// What `kernels.cpp` is written in: vectors of 16 numbers, as one register of AVX-512 or as two of AVX2 with FMA, and the
// few operations that the kernels need of them.

#pragma once

#include <immintrin.h>

#include <cstdint>

struct bf16 {
    uint16_t bits;
};

constexpr int LANES = 16;  // numbers of a vector

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

constexpr int TOGETHER = 4;  // vectors of tokens whose sums the registers hold beside one another

using Numbers = __m512;    // float32
using Units = __m512i;     // 32 bits each
using Halves = __m256i;    // 16 bits each
using Mask = __mmask16;

inline Numbers zeros() { return _mm512_setzero_ps(); }
inline Numbers all(float x) { return _mm512_set1_ps(x); }
inline Numbers add(Numbers a, Numbers b) { return _mm512_add_ps(a, b); }
inline Numbers sub(Numbers a, Numbers b) { return _mm512_sub_ps(a, b); }
inline Numbers mul(Numbers a, Numbers b) { return _mm512_mul_ps(a, b); }
inline Numbers div(Numbers a, Numbers b) { return _mm512_div_ps(a, b); }
inline Numbers fmadd(Numbers a, Numbers b, Numbers c) { return _mm512_fmadd_ps(a, b, c); }    // a·b + c
inline Numbers fmsub(Numbers a, Numbers b, Numbers c) { return _mm512_fmsub_ps(a, b, c); }    // a·b - c
inline Numbers larger(Numbers a, Numbers b) { return _mm512_max_ps(a, b); }    // where one is none, `b`
inline Numbers smaller(Numbers a, Numbers b) { return _mm512_min_ps(a, b); }   // the same
inline Numbers magnitude(Numbers x) { return _mm512_abs_ps(x); }
inline Numbers nearest_whole(Numbers x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Numbers times_power_of_two(Numbers x, Numbers whole) { return _mm512_scalef_ps(x, whole); }
inline Numbers reciprocal(Numbers x) {
    const Numbers near = _mm512_rcp14_ps(x);
    return mul(near, _mm512_fnmadd_ps(x, near, all(2.0f)));
}
inline float sum_of(Numbers x) { return _mm512_reduce_add_ps(x); }

// pairs of neighbours
inline Numbers swapped(Numbers x) { return _mm512_permute_ps(x, 0xb1); }
inline Numbers firsts_twice(Numbers x) { return _mm512_moveldup_ps(x); }
inline Numbers seconds_twice(Numbers x) { return _mm512_movehdup_ps(x); }
inline Numbers fmsubadd_pairs(Numbers a, Numbers b, Numbers c) { return _mm512_fmaddsub_ps(a, b, c); }  // first -, second +

inline Mask is_above(Numbers a, Numbers b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Mask is_negative(Numbers x) { return _mm512_movepi32_mask(_mm512_castps_si512(x)); }
inline Numbers where(Mask mask, Numbers yes, Numbers no) { return _mm512_mask_mov_ps(no, mask, yes); }

inline Units units_of(Numbers x) { return _mm512_castps_si512(x); }
inline Numbers numbers_of(Units x) { return _mm512_castsi512_ps(x); }
inline Units no_units() { return _mm512_setzero_si512(); }
inline Units all_units(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline Units both(Units a, Units b) { return _mm512_and_si512(a, b); }
inline Units either(Units a, Units b) { return _mm512_or_si512(a, b); }
inline Units to_upper(Units x) { return _mm512_slli_epi32(x, 16); }
inline Units to_lower(Units x) { return _mm512_srli_epi32(x, 16); }
inline Units widened(Halves x) { return _mm512_cvtepu16_epi32(x); }

inline Numbers load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* out, Numbers x) { _mm512_storeu_ps(out, x); }
inline Units load_units(const void* x) { return _mm512_loadu_si512(x); }
inline void store_units(void* out, Units x) { _mm512_storeu_si512(out, x); }
inline Halves load_halves(const bf16* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
inline void store_halves(bf16* out, Halves x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x); }

#ifdef __AVX512BF16__
inline Halves rounded(Numbers x) { return (__m256i)_mm512_cvtneps_pbh(x); }  // nearest, ties to even
inline Units rounded_pairs(Numbers first, Numbers second) {  // as [first, second, first, ...] of each lane
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}
#else
inline Halves rounded(Numbers x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(up, is_nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
#endif

// rows <-> columns of 16 by 16 units
inline void transpose(Units r[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#else  // AVX2 and FMA

constexpr int TOGETHER = 1;

struct Numbers {
    __m256 low, high;
};
struct Units {
    __m256i low, high;
};
struct Halves {
    __m128i low, high;
};
using Mask = Numbers;  // all bits of a lane, or none

inline Numbers zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Numbers all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Numbers add(Numbers a, Numbers b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Numbers sub(Numbers a, Numbers b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Numbers mul(Numbers a, Numbers b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Numbers div(Numbers a, Numbers b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Numbers fmadd(Numbers a, Numbers b, Numbers c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Numbers fmsub(Numbers a, Numbers b, Numbers c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Numbers larger(Numbers a, Numbers b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Numbers smaller(Numbers a, Numbers b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Numbers magnitude(Numbers x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Numbers nearest_whole(Numbers x) {
    constexpr int HOW = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, HOW), _mm256_round_ps(x.high, HOW)};
}
inline __m256 times_power_of_two(__m256 x, __m256 whole) {  // for powers of normal numbers
    const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
}
inline Numbers times_power_of_two(Numbers x, Numbers whole) {
    return {times_power_of_two(x.low, whole.low), times_power_of_two(x.high, whole.high)};
}
inline Numbers reciprocal(Numbers x) { return div(all(1.0f), x); }
inline float sum_of(Numbers x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Numbers swapped(Numbers x) { return {_mm256_permute_ps(x.low, 0xb1), _mm256_permute_ps(x.high, 0xb1)}; }
inline Numbers firsts_twice(Numbers x) { return {_mm256_moveldup_ps(x.low), _mm256_moveldup_ps(x.high)}; }
inline Numbers seconds_twice(Numbers x) { return {_mm256_movehdup_ps(x.low), _mm256_movehdup_ps(x.high)}; }
inline Numbers fmsubadd_pairs(Numbers a, Numbers b, Numbers c) {
    return {_mm256_fmaddsub_ps(a.low, b.low, c.low), _mm256_fmaddsub_ps(a.high, b.high, c.high)};
}

inline Mask is_above(Numbers a, Numbers b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ)};
}
inline Mask is_negative(Numbers x) { return x; }  // a blend looks at signs alone
inline Numbers where(Mask mask, Numbers yes, Numbers no) {
    return {_mm256_blendv_ps(no.low, yes.low, mask.low), _mm256_blendv_ps(no.high, yes.high, mask.high)};
}

inline Units units_of(Numbers x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
inline Numbers numbers_of(Units x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
inline Units no_units() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Units all_units(uint32_t x) {
    const __m256i one = _mm256_set1_epi32(static_cast<int>(x));
    return {one, one};
}
inline Units both(Units a, Units b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
inline Units either(Units a, Units b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
inline Units to_upper(Units x) { return {_mm256_slli_epi32(x.low, 16), _mm256_slli_epi32(x.high, 16)}; }
inline Units to_lower(Units x) { return {_mm256_srli_epi32(x.low, 16), _mm256_srli_epi32(x.high, 16)}; }
inline Units widened(Halves x) { return {_mm256_cvtepu16_epi32(x.low), _mm256_cvtepu16_epi32(x.high)}; }

inline Numbers load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline void store(float* out, Numbers x) { _mm256_storeu_ps(out, x.low), _mm256_storeu_ps(out + 8, x.high); }
inline Units load_units(const void* x) {
    const __m256i* at = static_cast<const __m256i*>(x);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline void store_units(void* out, Units x) {
    __m256i* at = static_cast<__m256i*>(out);
    _mm256_storeu_si256(at, x.low), _mm256_storeu_si256(at + 1, x.high);
}
inline Halves load_halves(const bf16* x) {
    const __m128i* at = reinterpret_cast<const __m128i*>(x);
    return {_mm_loadu_si128(at), _mm_loadu_si128(at + 1)};
}
inline void store_halves(bf16* out, Halves x) {
    __m128i* at = reinterpret_cast<__m128i*>(out);
    _mm_storeu_si128(at, x.low), _mm_storeu_si128(at + 1, x.high);
}

inline __m128i rounded(__m256 x) {  // nearest, ties to even
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 none = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), none, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i lower = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1));
}
inline Halves rounded(Numbers x) { return {rounded(x.low), rounded(x.high)}; }

inline void transpose(__m256i* r0, __m256i* r1, __m256i* r2, __m256i* r3, __m256i* r4, __m256i* r5, __m256i* r6, __m256i* r7) {
    const __m256i a0 = _mm256_unpacklo_epi32(*r0, *r1), a1 = _mm256_unpackhi_epi32(*r0, *r1);
    const __m256i a2 = _mm256_unpacklo_epi32(*r2, *r3), a3 = _mm256_unpackhi_epi32(*r2, *r3);
    const __m256i a4 = _mm256_unpacklo_epi32(*r4, *r5), a5 = _mm256_unpackhi_epi32(*r4, *r5);
    const __m256i a6 = _mm256_unpacklo_epi32(*r6, *r7), a7 = _mm256_unpackhi_epi32(*r6, *r7);
    const __m256i b0 = _mm256_unpacklo_epi64(a0, a2), b1 = _mm256_unpackhi_epi64(a0, a2);
    const __m256i b2 = _mm256_unpacklo_epi64(a1, a3), b3 = _mm256_unpackhi_epi64(a1, a3);
    const __m256i b4 = _mm256_unpacklo_epi64(a4, a6), b5 = _mm256_unpackhi_epi64(a4, a6);
    const __m256i b6 = _mm256_unpacklo_epi64(a5, a7), b7 = _mm256_unpackhi_epi64(a5, a7);
    *r0 = _mm256_permute2x128_si256(b0, b4, 0x20), *r4 = _mm256_permute2x128_si256(b0, b4, 0x31);
    *r1 = _mm256_permute2x128_si256(b1, b5, 0x20), *r5 = _mm256_permute2x128_si256(b1, b5, 0x31);
    *r2 = _mm256_permute2x128_si256(b2, b6, 0x20), *r6 = _mm256_permute2x128_si256(b2, b6, 0x31);
    *r3 = _mm256_permute2x128_si256(b3, b7, 0x20), *r7 = _mm256_permute2x128_si256(b3, b7, 0x31);
}

inline void transpose(Units r[LANES]) {
    for (int i = 0; i < LANES; i += 8) {
        transpose(&r[i].low, &r[i + 1].low, &r[i + 2].low, &r[i + 3].low, &r[i + 4].low, &r[i + 5].low, &r[i + 6].low,
                  &r[i + 7].low);
        transpose(&r[i].high, &r[i + 1].high, &r[i + 2].high, &r[i + 3].high, &r[i + 4].high, &r[i + 5].high,
                  &r[i + 6].high, &r[i + 7].high);
    }
    for (int i = 0; i < 8; ++i) {
        const __m256i corner = r[i].high;
        r[i].high = r[i + 8].low;
        r[i + 8].low = corner;
    }
}

#endif

inline Numbers load(const bf16* x) { return numbers_of(to_upper(widened(load_halves(x)))); }
inline void store(bf16* out, Numbers x) { store_halves(out, rounded(x)); }
