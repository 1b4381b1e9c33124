// Kernels for processors with AVX-512 or AVX2: attention, dense or over blocks of keys, and what stands between the
// products of a transformer. Compiled on the machine where they run (see native/library.py), called through ctypes; no
// dependencies.
//
// Attention keeps 64 queries as lanes: scores lie as [key][query], so that maxima, sums and exponentials of the softmax
// work lane by lane, a key that does not count is a row left out, and keys and values are broadcast from packed rows.
// Scores of two blocks of keys and the packed queries stay in the first cache.
//
// Legend: B clips, S queries, L keys, N heads, K width of a head; all strides count numbers, not bytes.

#include "vectors.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

constexpr int COLUMNS = 4;          // vectors of queries
constexpr int TILE = 64;            // queries, and keys of a block
constexpr int CHUNK = 2 * TILE;     // keys between two updates of the sums
constexpr float LOWEST = -1e30f;
constexpr float LOG2_E = 1.44269504088896341f;

struct Scratch {  // aligned memory that is freed with it
    void* at;
    explicit Scratch(size_t bytes) : at(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
    ~Scratch() { std::free(at); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class T> T* as() const { return static_cast<T*>(at); }
};

// -- numbers ----------------------------------------------------------------------------------------------------------

// 2^x for x <= 0 or near it; what is below 2^-126 becomes that, and what is no number stays none: of two operands of
// which one is none, the instruction gives the second
template <bool FINE> inline Numbers power_of_two(Numbers x) {
    x = larger(all(-126.0f), x);
    const Numbers whole = nearest_whole(x);
    const Numbers f = sub(x, whole);
    Numbers y;
    if (FINE) {
        y = all(0.00015353303751908243f);
        y = fmadd(y, f, all(0.0013398875016719103f));
        y = fmadd(y, f, all(0.009618437848985195f));
        y = fmadd(y, f, all(0.055503323674201965f));
        y = fmadd(y, f, all(0.24022647738456726f));
        y = fmadd(y, f, all(0.6931471824645996f));
    } else {
        y = all(0.009582786820828915f);
        y = fmadd(y, f, all(0.05590641871094704f));
        y = fmadd(y, f, all(0.24024100601673126f));
        y = fmadd(y, f, all(0.6931241750717163f));
    }
    y = fmadd(y, f, all(1.0f));
    return times_power_of_two(y, whole);
}

// -- products ---------------------------------------------------------------------------------------------------------
// A *unit* has 32 bits: one number in float32, or two neighbours of the sum in bfloat16.

template <class M> struct Product;
template <> struct Product<float> {
    static constexpr int PER_UNIT = 1, MOST_ROWS = 6;
    static Numbers add(Numbers sum, Units lanes, Units one) { return fmadd(numbers_of(lanes), numbers_of(one), sum); }
};
template <> struct Product<bf16> {
    static constexpr int PER_UNIT = 2;
#ifdef __AVX512BF16__
    static constexpr int MOST_ROWS = 6;
    static Numbers add(Numbers sum, Units lanes, Units one) {
        return _mm512_dpbf16_ps(sum, (__m512bh)lanes, (__m512bh)one);
    }
#else
    static constexpr int MOST_ROWS = 4;  // a vector of tokens is two of float32, and so is a row's unit
    static Numbers second(Units x) { return numbers_of(both(x, all_units(0xffff0000u))); }
    static Numbers add(Numbers sum, Units lanes, Units one) {
        return fmadd(second(lanes), second(one), fmadd(numbers_of(to_upper(lanes)), numbers_of(to_upper(one)), sum));
    }
#endif
};
#ifdef __AVX512BF16__
using Pairs = bf16;  // what scores and values of attention in bfloat16 are multiplied as
#else
using Pairs = float;
#endif
template <class T> struct Mixed {
    using Type = float;
};
template <> struct Mixed<bf16> {
    using Type = Pairs;
};

struct Part {               // a stretch of a sum
    const uint32_t* lanes;  // [steps][TILE]
    const uint32_t* rows;   // one unit a row and step
    int steps;
};

// out[r] = (keep ? out · keep : 0) + sum over steps of rows · lanes, of as many vectors of tokens as the registers hold,
// from token `first` on
template <class M, int R>
inline void tile(const Part* parts, int count, long row, long step, float* out, const float* keep, int first) {
    Numbers sums[R][TOGETHER];
    out += first;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < TOGETHER; ++c)
            sums[r][c] = keep ? mul(load(out + r * TILE + c * LANES), load(keep + first + c * LANES)) : zeros();
    for (int part = 0; part < count; ++part) {
        const uint32_t* lanes = parts[part].lanes + first;
        const uint32_t* rows = parts[part].rows;
        for (int at = 0; at < parts[part].steps; ++at, lanes += TILE, rows += step) {
            Units column[TOGETHER];
#pragma GCC unroll 4
            for (int c = 0; c < TOGETHER; ++c) column[c] = load_units(lanes + c * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Units one = all_units(rows[r * row]);
#pragma GCC unroll 4
                for (int c = 0; c < TOGETHER; ++c) sums[r][c] = Product<M>::add(sums[r][c], column[c], one);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < TOGETHER; ++c) store(out + r * TILE + c * LANES, sums[r][c]);
}

template <class M>
void tiles(Part* parts, int count, int rows, long row, long step, float* out, const float* keep) {
    constexpr int MOST = 6;  // sums, columns and a row fit the registers: 24, 4 and 1 of 32, or 12, 2 and 1 of 16
    for (int done = 0; done < rows;) {
        const int now = rows - done < MOST ? rows - done : MOST;
        for (int first = 0; first < TILE; first += TOGETHER * LANES) switch (now) {
                case 1: tile<M, 1>(parts, count, row, step, out, keep, first); break;
                case 2: tile<M, 2>(parts, count, row, step, out, keep, first); break;
                case 3: tile<M, 3>(parts, count, row, step, out, keep, first); break;
                case 4: tile<M, 4>(parts, count, row, step, out, keep, first); break;
                case 5: tile<M, 5>(parts, count, row, step, out, keep, first); break;
                default: tile<M, 6>(parts, count, row, step, out, keep, first);
            }
        for (int part = 0; part < count; ++part) parts[part].rows += now * row;
        done += now;
        out += now * TILE;
    }
}

// -- packing ----------------------------------------------------------------------------------------------------------

template <class M> void pack_row(const M* from, int width, M* to) { std::memcpy(to, from, width * sizeof(M)); }
inline void pack_row(const bf16* from, int width, float* to) {
    for (int i = 0; i < width; i += LANES) store(to + i, load(from + i));
}

// values [keys][width] as [unit of keys][width], what is missing of the last unit as zeros
template <class T>
void pack_values(const T* const* rows, int count, int width, float* to) {
    for (int i = 0; i < count; ++i) pack_row(rows[i], width, to + static_cast<long>(i) * width);
}
#ifdef __AVX512BF16__
inline void pack_values(const bf16* const* rows, int count, int width, bf16* to) {
    for (int i = 0; i < count; i += 2, to += 2 * width)
        for (int c = 0; c < width; c += LANES) {
            const auto half = [&](int row) {
                if (row >= count) return no_units();
                return widened(load_halves(rows[row] + c));
            };
            store_units(to + 2 * c, either(half(i), to_upper(half(i + 1))));
        }
}
#endif

inline Units units_as(const bf16* from, float) { return units_of(load(from)); }
inline Units units_as(const float* from, float) { return load_units(from); }
inline Units units_as(const bf16* from, bf16) { return load_units(from); }

// up to 64 queries as [unit of the width][64], what is missing as zeros
template <class T, class M>
void pack_queries(const T* from, long stride, int count, int width, uint32_t* to) {
    constexpr int PER_UNIT = Product<M>::PER_UNIT;
    for (int c = 0; c < COLUMNS; ++c)
        for (int u = 0; u < width / PER_UNIT; u += LANES) {
            Units square[LANES];
            for (int i = 0; i < LANES; ++i) {
                const int query = c * LANES + i;
                square[i] = query < count ? units_as(from + query * stride + u * PER_UNIT, M{}) : no_units();
            }
            transpose(square);
            for (int i = 0; i < LANES; ++i) store_units(to + (u + i) * TILE + c * LANES, square[i]);
        }
}

// -- attention --------------------------------------------------------------------------------------------------------

struct Attention {
    const void *q, *k, *v;
    void* out;               // [B, S, N, K], nothing between
    const uint8_t* counted;  // [B, L]: whether a key counts; null: all do
    const int64_t* firsts;   // [B·N·Q + 1]: where the kept blocks of keys of a block of queries begin in `kept`; null: dense
    const int32_t* kept;     // numbers of blocks of keys
    const int32_t* counts;   // keys of each block that count, the first ones; null: all do
    int64_t q_strides[3], k_strides[3], v_strides[3];  // of clips, tokens, heads
    int64_t B, S, L, N, K;
    int64_t size;            // tokens of a block, a multiple of TILE
    int64_t threads;
    float scale;
};

// scores [keys][64] to weights, in place, as [unit of keys][64]; updates the largest and the sum of each query
template <class M>
inline void softmax(float* scores, int keys, float scale, float* largest, float* total, float* keep) {
    Numbers top[COLUMNS], before[COLUMNS];
    const Numbers factor = all(scale);
    for (int c = 0; c < COLUMNS; ++c) top[c] = all(LOWEST);
    for (int i = 0; i < keys; ++i)
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; ++c) top[c] = larger(top[c], load(scores + i * TILE + c * LANES));
    Numbers sum[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) {
        before[c] = load(largest + c * LANES);
        top[c] = larger(before[c], mul(top[c], factor));
        store(largest + c * LANES, top[c]);
        const Numbers share = power_of_two<true>(sub(before[c], top[c]));
        store(keep + c * LANES, share);
        sum[c] = mul(load(total + c * LANES), share);
    }
    constexpr bool FINE = Product<M>::PER_UNIT == 1;
    if constexpr (FINE) {
        for (int i = 0; i < keys; ++i)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; ++c) {
                float* at = scores + i * TILE + c * LANES;
                const Numbers y = power_of_two<FINE>(fmsub(load(at), factor, top[c]));
                sum[c] = add(sum[c], y);
                store(at, y);
            }
    } else {
#ifdef __AVX512BF16__
        for (int i = 0; i < keys; i += 2)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; ++c) {
                const float* at = scores + i * TILE + c * LANES;
                const Numbers y = power_of_two<FINE>(fmsub(load(at), factor, top[c]));
                const Numbers z = power_of_two<FINE>(fmsub(load(at + TILE), factor, top[c]));
                sum[c] = add(sum[c], add(y, z));
                store_units(scores + i / 2 * TILE + c * LANES, rounded_pairs(y, z));
            }
#endif
    }
    for (int c = 0; c < COLUMNS; ++c) store(total + c * LANES, sum[c]);
}

template <class T, class M> class Head {
    static constexpr int PER_UNIT = Product<M>::PER_UNIT;
    const Attention& work_;
    const int K_, units_;
    const long tiles_;  // of keys
    Scratch keys_, values_, queries_, scores_, sums_;
    std::vector<int> counts_;

  public:
    explicit Head(const Attention& work)
        : work_(work), K_(static_cast<int>(work.K)), units_(K_ / PER_UNIT), tiles_((work.L + TILE - 1) / TILE),
          keys_(tiles_ * TILE * units_ * 4), values_(tiles_ * TILE / PER_UNIT * K_ * 4), queries_(units_ * TILE * 4),
          scores_(CHUNK * TILE * 4), sums_(K_ * TILE * 4), counts_(tiles_) {}

    void take(long b, long n) {
        const T* k = static_cast<const T*>(work_.k) + b * work_.k_strides[0] + n * work_.k_strides[2];
        const T* v = static_cast<const T*>(work_.v) + b * work_.v_strides[0] + n * work_.v_strides[2];
        const uint8_t* counted = work_.counted ? work_.counted + b * work_.L : nullptr;
        long next = 0;
        for (long t = 0; t < tiles_; ++t) {
            const T* rows[TILE];
            int count = 0;
            long end = work_.L;
            if (work_.firsts) {  // blocks keep their places
                next = t * TILE;
                const long block = next / work_.size, inside = next % work_.size;
                const long real = (work_.counts ? work_.counts[block] : work_.size) - inside;
                end = next + (real < 0 ? 0 : real < TILE ? real : TILE);
                if (end > work_.L) end = work_.L;
            }
            M* keys = keys_.as<M>() + t * TILE * K_;
            for (; next < end && count < TILE; ++next) {
                if (counted && !counted[next]) continue;
                pack_row(k + next * work_.k_strides[1], K_, keys + static_cast<long>(count) * K_);
                rows[count++] = v + next * work_.v_strides[1];
            }
            pack_values(rows, count, K_, values_.as<M>() + t * TILE * K_);
            counts_[t] = count;
        }
    }

    void attend(long b, long n, long first) {  // queries from `first` on, TILE at most
        const int count = static_cast<int>(work_.S - first < TILE ? work_.S - first : TILE);
        const T* q = static_cast<const T*>(work_.q) + b * work_.q_strides[0] + n * work_.q_strides[2];
        uint32_t* queries = queries_.as<uint32_t>();
        pack_queries<T, M>(q + first * work_.q_strides[1], work_.q_strides[1], count, K_, queries);
        alignas(64) float largest[TILE], total[TILE], keep[TILE];
        for (int i = 0; i < TILE; ++i) largest[i] = LOWEST, total[i] = 0.0f;
        float *scores = scores_.as<float>(), *sums = sums_.as<float>();
        std::memset(sums, 0, K_ * TILE * sizeof(float));
        const float scale = work_.scale * LOG2_E;

        Part parts[2];
        int held = 0, filled = 0;
        const auto finish = [&] {
            if (!held) return;
            softmax<M>(scores, filled, scale, largest, total, keep);
            tiles<M>(parts, held, K_, 1, K_, sums, keep);
            held = filled = 0;
        };
        const auto see = [&](long t) {
            const int keys = counts_[t];
            if (!keys) return;
            float* out = scores + filled * TILE;
            Part part{queries, keys_.as<uint32_t>() + t * TILE * units_, units_};
            tiles<M>(&part, 1, keys, units_, 1, out, nullptr);
            int rows = keys;
            for (; rows % PER_UNIT; ++rows)
                for (int c = 0; c < TILE; ++c) out[rows * TILE + c] = LOWEST;
            parts[held++] = {reinterpret_cast<const uint32_t*>(scores) + filled / PER_UNIT * TILE,
                             values_.as<uint32_t>() + t * (TILE / PER_UNIT) * K_, rows / PER_UNIT};
            filled += rows;
            if (held == 2) finish();
        };
        if (!work_.firsts) {
            for (long t = 0; t < tiles_; ++t) see(t);
        } else {
            const long blocks = work_.S / work_.size, each = work_.size / TILE;
            const int64_t* firsts = work_.firsts + (b * work_.N + n) * blocks + first / work_.size;
            for (int64_t at = firsts[0]; at < firsts[1]; ++at)
                for (long t = 0; t < each; ++t) see(work_.kept[at] * each + t);
        }
        finish();

        T* out = static_cast<T*>(work_.out) + ((b * work_.S + first) * work_.N + n) * K_;
        for (int c = 0; c < COLUMNS && c * LANES < count; ++c) {
            const Numbers of = load(total + c * LANES);
            const Numbers share = where(is_above(of, zeros()), div(all(1.0f), of), zeros());
            for (int k = 0; k < K_; k += LANES) {
                Units square[LANES];
                for (int i = 0; i < LANES; ++i)
                    square[i] = units_of(mul(load(sums + (k + i) * TILE + c * LANES), share));
                transpose(square);
                for (int i = 0; i < LANES && c * LANES + i < count; ++i)
                    store(out + (c * LANES + i) * work_.N * K_ + k, numbers_of(square[i]));
            }
        }
    }
};

// begins a thread; false where the system gives none: then the work is for those there are, since an exception would end
// the process
template <class Do> bool begun(std::vector<std::thread>& others, const Do& work) {
    try {
        others.emplace_back(work);
    } catch (const std::system_error&) {
        return false;
    }
    return true;
}

template <class T, class M> void attend(const Attention& work) {
    const long heads = work.B * work.N, tiles = (work.S + TILE - 1) / TILE;
    long workers = work.threads < 1 ? 1 : work.threads;
    // few heads are cut, so that every thread has several pieces of work; a piece packs its head's keys itself
    const long pieces = workers == 1 || heads >= 4 * workers ? 1 : (4 * workers + heads - 1) / heads;
    const long step = (tiles + pieces - 1) / pieces;
    if (workers > heads * pieces) workers = heads * pieces;
    std::atomic<long> next{0};
    const auto run = [&] {
        Head<T, M> head(work);
        for (long at; (at = next.fetch_add(1)) < heads * pieces;) {
            const long b = at / pieces / work.N, n = at / pieces % work.N, from = at % pieces * step;
            if (from >= tiles) continue;
            head.take(b, n);
            for (long t = from; t < from + step && t < tiles; ++t) head.attend(b, n, t * TILE);
        }
    };
    std::vector<std::thread> others;
    for (long i = 1; i < workers && begun(others, run); ++i) {}
    run();
    for (auto& other : others) other.join();
}

// -- between the products ---------------------------------------------------------------------------------------------

// calls work(first row, rows) for stretches of the rows, as many as there are threads and as are worth one
template <class Do> void in_stretches(long rows, long numbers_of_row, long threads, const Do& work) {
    constexpr long LEAST = 1 << 17;  // numbers of a thread
    long count = rows * numbers_of_row / LEAST;
    count = count < 1 ? 1 : count < threads ? count : threads;
    const long each = (rows + count - 1) / count;
    std::vector<std::thread> others;
    for (long first = each; first < rows; first += each) {
        const auto piece = [&work, first, each, rows] { work(first, first + each < rows ? each : rows - first); };
        if (!begun(others, piece)) piece();
    }
    work(0, each < rows ? each : rows);
    for (auto& other : others) other.join();
}

// RMSNorm of each head and its turn, in place; table [positions][K] holds cosine and sine of each pair, or is null
template <class T>
void normed_heads(T* x, const float* weight, const float* table, long tokens, long heads, long K, float eps) {
    for (long s = 0; s < tokens; ++s)
        for (long n = 0; n < heads; ++n, x += K) {
            Numbers squares = zeros();
            for (long k = 0; k < K; k += LANES) {
                const Numbers y = load(x + k);
                squares = fmadd(y, y, squares);
            }
            const Numbers share = all(1.0f / std::sqrt(sum_of(squares) / static_cast<float>(K) + eps));
            for (long k = 0; k < K; k += LANES) {
                Numbers y = mul(mul(load(x + k), share), load(weight + k));
                if (table) {
                    const Numbers turn = load(table + s * K + k);
                    const Numbers other = mul(swapped(y), seconds_twice(turn));
                    y = fmsubadd_pairs(y, firsts_twice(turn), other);
                }
                store(x + k, y);
            }
        }
}

// out = LayerNorm(x)·scale + shift
template <class T>
void modulated(const T* x, const float* scale, const float* shift, T* out, long rows, long D, float eps) {
    constexpr long TWO = 2 * LANES;  // sums of two vectors at once wait less for each other
    for (long s = 0; s < rows; ++s, x += D, out += D) {
        Numbers sum = zeros(), other = sum, squares = sum, others = sum;
        for (long d = 0; d < D; d += TWO) {
            sum = add(sum, load(x + d));
            if (d + LANES < D) other = add(other, load(x + d + LANES));
        }
        const Numbers mean = all(sum_of(add(sum, other)) / static_cast<float>(D));
        for (long d = 0; d < D; d += TWO) {
            const Numbers y = sub(load(x + d), mean);
            squares = fmadd(y, y, squares);
            if (d + LANES >= D) continue;
            const Numbers z = sub(load(x + d + LANES), mean);
            others = fmadd(z, z, others);
        }
        const float spread = sum_of(add(squares, others)) / static_cast<float>(D);
        const Numbers share = all(1.0f / std::sqrt(spread + eps));
        for (long d = 0; d < D; d += LANES) {
            const Numbers y = mul(sub(load(x + d), mean), share);
            store(out + d, fmadd(y, load(scale + d), load(shift + d)));
        }
    }
}

// update = x + gate·update
template <class T> void gated(const T* x, const float* gate, T* update, long rows, long D) {
    for (long s = 0; s < rows; ++s, x += D, update += D)
        for (long d = 0; d < D; d += LANES) store(update + d, fmadd(load(gate + d), load(update + d), load(x + d)));
}

// -- products with weights --------------------------------------------------------------------------------------------
// Weights are read as they lie, [N][K]: a row is broadcast unit by unit, and 64 tokens are lanes. So nothing is packed
// but the tokens, and what a product gives, [N][64], is already the lanes of the next one.

constexpr int ROWS = 48;  // rows of weights between two turns of what they give; a multiple of all that `block` takes

// out[r][64] = (MORE ? out : 0) + sum over steps of rows · lanes, for R rows and the first C vectors of tokens. Meanwhile
// the rows behind these come into the first cache: weights of a whole model lie in the third.
template <class M, int R, int C, bool MORE>
inline void block(const uint32_t* lanes, const uint32_t* rows, long row, long steps, float* out) {
    Numbers sums[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sums[r][c] = MORE ? load(out + r * TILE + c * LANES) : zeros();
    const uint32_t* at = rows;
    for (long step = 0; step < steps; ++step, lanes += TILE, ++at) {
        Units column[C];
        if (TOGETHER > 1) _mm_prefetch(reinterpret_cast<const char*>(rows + R * (row + step)), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) column[c] = load_units(lanes + c * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Units one = all_units(at[r * row]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sums[r][c] = Product<M>::add(sums[r][c], column[c], one);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) store(out + r * TILE + c * LANES, sums[r][c]);
}

template <class M, int C, bool MORE = false>
void blocks(const uint32_t* lanes, const uint32_t* rows, long row, long steps, int count, float* out) {
    constexpr int FEW = Product<M>::MOST_ROWS;  // of four vectors of tokens, as in `tiles`; of fewer, more rows fit
    constexpr int MOST = C == 4 || TOGETHER == 1 || FEW < 6 ? FEW : C == 3 ? 8 : 12;
    int done = 0;
    const auto take = [&](auto rows_at_once) {
        constexpr int R = decltype(rows_at_once)::value;
        for (; count - done >= R; done += R) block<M, R, C, MORE>(lanes, rows + done * row, row, steps, out + done * TILE);
    };
    take(std::integral_constant<int, MOST>());
    take(std::integral_constant<int, 4>());
    take(std::integral_constant<int, 2>());
}

// `count` rows of weights, an even number, and `columns` vectors of tokens
template <class M>
void blocks(const uint32_t* lanes, const M* weight, long K, int count, int columns, float* out) {
    const uint32_t* rows = reinterpret_cast<const uint32_t*>(weight);
    const long steps = K / Product<M>::PER_UNIT;
    if (TOGETHER == 1) {  // a vector of tokens stays in the first cache for all rows
        constexpr long STRETCH = 256;
        for (long at = 0; at < steps; at += STRETCH) {
            const long now = steps - at < STRETCH ? steps - at : STRETCH;
            for (int c = 0; c < columns; ++c) {
                const uint32_t* column = lanes + at * TILE + c * LANES;
                if (at) blocks<M, 1, true>(column, rows + at, steps, now, count, out + c * LANES);
                else blocks<M, 1>(column, rows, steps, now, count, out + c * LANES);
            }
        }
        return;
    }
    switch (columns) {
        case 1: return blocks<M, 1>(lanes, rows, steps, steps, count, out);
        case 2: return blocks<M, 2>(lanes, rows, steps, steps, count, out);
        case 3: return blocks<M, 3>(lanes, rows, steps, steps, count, out);
        default: return blocks<M, 4>(lanes, rows, steps, steps, count, out);
    }
}

inline float number(float x) { return x; }
inline float number(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

// to the type and back
inline Numbers as_type(Numbers x, float) { return x; }
inline Numbers as_type(Numbers x, bf16) {
    return numbers_of(to_upper(widened(rounded(x))));
}

// x·Φ(x), to be rounded to bfloat16: off by 1e-4 of itself. log2 Φ(-t) as a polynomial of t, for t from 0 to 6; beyond,
// it falls as fast as is needed.
inline Numbers gelu_of_halves(Numbers x) {
    const Numbers t = magnitude(x);
    Numbers y = fmadd(all(-1.9914371e-6f), t, all(6.4879059e-5f));
    y = fmadd(y, t, all(-9.5760298e-4f));
    y = fmadd(y, t, all(8.6192163e-3f));
    y = fmadd(y, t, all(-5.4196645e-2f));
    y = fmadd(y, t, all(-0.45822239f));
    y = fmadd(y, t, all(-1.1513455f));
    y = power_of_two<false>(fmadd(y, t, all(-0.99998909f)));
    return mul(x, where(is_negative(x), y, sub(all(1.0f), y)));
}

// x·(1 + erf(x/√2))/2, within 3 units of the last place of float32 where that is not tiny; after N. Juffa's erff
inline Numbers gelu(Numbers x) {
    const Numbers a = mul(x, all(0.70710678118654752f));
    const Numbers t = magnitude(a), s = mul(a, a);
    Numbers rest = fmadd(all(-1.72853470e-5f), t, all(3.83197126e-4f));  // 1 - |erf|, far from zero
    rest = fmadd(rest, s, fmadd(all(-3.88396438e-3f), t, all(2.42546219e-2f)));
    rest = fmadd(rest, t, all(-1.06777877e-1f));
    rest = fmadd(rest, t, all(-6.34846687e-1f));
    rest = fmadd(rest, t, all(-1.28717512e-1f));
    rest = fmsub(rest, t, t);
    rest = power_of_two<true>(mul(rest, all(LOG2_E)));
    Numbers near = all(-5.96761703e-4f);
    near = fmadd(near, s, all(4.99119423e-3f));
    near = fmadd(near, s, all(-2.67681349e-2f));
    near = fmadd(near, s, all(1.12819925e-1f));
    near = fmadd(near, s, all(-3.76125336e-1f));
    near = fmadd(near, s, all(1.28379166e-1f));
    near = add(fmadd(near, a, a), all(1.0f));
    const Numbers far = where(is_negative(x), rest, sub(all(2.0f), rest));
    return mul(mul(x, all(0.5f)), where(is_above(t, all(0.927734375f)), far, near));
}

// what a product gave, [count][64] with `count` a multiple of 16, to tokens: +bias, rounded; then x + gate·it, if there is
template <class T>
void to_tokens(const float* from, int count, const T* bias, const T* base, const float* gate, T* out, long N, int tokens) {
    for (int r = 0; r < count; r += LANES) {
        const Numbers more = bias ? load(bias + r) : zeros();
        for (int c = 0; c * LANES < tokens; ++c) {
            Units square[LANES];
            for (int i = 0; i < LANES; ++i)
                square[i] = units_of(load(from + (r + i) * TILE + c * LANES));
            transpose(square);
            for (int i = 0; i < LANES && c * LANES + i < tokens; ++i) {
                const long at = (c * LANES + i) * N + r;
                Numbers y = add(numbers_of(square[i]), more);
                if (gate) y = fmadd(load(gate + r), as_type(y, T{}), load(base + at));
                store(out + at, y);
            }
        }
    }
}

// what a product gave, [count][64], to lanes of the next product: +bias, rounded, GELU, rounded
inline void to_lanes(const float* from, int count, const float* bias, uint32_t* lanes, int columns) {
    for (int r = 0; r < count; ++r)
        for (int c = 0; c < columns; ++c) {
            const Numbers y = load(from + r * TILE + c * LANES);
            const Numbers more = all(bias ? bias[r] : 0.0f);
            store(reinterpret_cast<float*>(lanes) + r * TILE + c * LANES, gelu(add(y, more)));
        }
}
inline void to_lanes(const float* from, int count, const bf16* bias, uint32_t* lanes, int columns) {
    const Units upper = all_units(0xffff0000u);
    for (int r = 0; r < count; r += 2)
        for (int c = 0; c < columns; ++c) {
            const auto made = [&](int row) {
                Numbers y = load(from + row * TILE + c * LANES);
                if (bias) y = add(y, all(number(bias[row])));
                return units_of(as_type(gelu_of_halves(as_type(y, bf16{})), bf16{}));
            };
            const Units pair = either(to_lower(made(r)), both(made(r + 1), upper));
            store_units(lanes + r / 2 * TILE + c * LANES, pair);
        }
}

struct Weights {
    const void *weight, *bias;  // [N][K]; [N] or null
};

template <class T> struct Layer {
    Weights weights;
    T* out;              // [tokens][N]
    long N;
    const float* norm;   // [width of a head]: RMSNorm of the heads; null: none
    const float* turns;  // [tokens][width of a head], see `normed_heads`; null: none
    long width;
    float eps;
};

// Calls work(next, most) in as many threads as are worth starting; `next` gives first tokens of stretches of up to `most`
// tiles, -1 for the end. Rows of weights are read once for a stretch, so that they come from memory seldom.
template <class Do> void over_tiles(long tokens, double multiplications, long threads, const Do& work) {
    constexpr double LEAST = 1 << 25;  // of a thread
    constexpr long MOST = 4;           // tiles of a stretch: they leave room in the second cache
    const long tiles = (tokens + TILE - 1) / TILE;
    long workers = static_cast<long>(multiplications / LEAST);
    workers = workers < threads ? workers : threads;
    workers = workers < 1 ? 1 : workers < tiles ? workers : tiles;
    const long each = tiles / workers < MOST ? tiles / workers : MOST;
    std::atomic<long> next{0};
    const auto run = [&] {
        work([&] { const long at = next.fetch_add(each); return at < tiles ? at * TILE : -1; }, each);
    };
    std::vector<std::thread> others;
    for (long i = 1; i < workers && begun(others, run); ++i) {}
    run();
    for (auto& other : others) other.join();
}

struct Stretch {  // of tokens
    long first, count;
    int tiles() const { return static_cast<int>((count + TILE - 1) / TILE); }
    long at(int tile) const { return first + tile * TILE; }
    int have(int tile) const { return static_cast<int>(count - tile * TILE < TILE ? count - tile * TILE : TILE); }
    int columns(int tile) const { return (have(tile) + LANES - 1) / LANES; }
};

// layers of the same tokens, each with its bias, the norm of its heads and their turn
template <class T>
void project(const T* x, long tokens, long K, const Layer<T>* layers, int count, const T* base, const float* gate,
             long threads) {
    double work = 0.0;
    for (int i = 0; i < count; ++i) work += static_cast<double>(tokens) * K * layers[i].N;
    over_tiles(tokens, work, threads, [&](const auto& next, long most) {
        const long size = K / Product<T>::PER_UNIT * TILE;  // of the lanes of a tile
        Scratch packed(most * size * 4), given(ROWS * TILE * 4);
        uint32_t* lanes = packed.as<uint32_t>();
        float* sums = given.as<float>();
        for (long first; (first = next()) >= 0;) {
            const Stretch now{first, tokens - first < most * TILE ? tokens - first : most * TILE};
            for (int t = 0; t < now.tiles(); ++t)
                pack_queries<T, T>(x + now.at(t) * K, K, now.have(t), static_cast<int>(K), lanes + t * size);
            for (int i = 0; i < count; ++i) {
                const Layer<T>& layer = layers[i];
                const T* weight = static_cast<const T*>(layer.weights.weight);
                const T* bias = static_cast<const T*>(layer.weights.bias);
                for (long n = 0; n < layer.N; n += ROWS) {
                    const int rows = static_cast<int>(layer.N - n < ROWS ? layer.N - n : ROWS);
                    for (int t = 0; t < now.tiles(); ++t) {
                        const long at = now.at(t) * layer.N + n;
                        blocks<T>(lanes + t * size, weight + n * K, K, rows, now.columns(t), sums);
                        to_tokens(sums, rows, bias ? bias + n : nullptr, base ? base + at : nullptr,
                                  gate ? gate + n : nullptr, layer.out + at, layer.N, now.have(t));
                    }
                }
                if (!layer.norm) continue;
                const float* turns = layer.turns ? layer.turns + first * layer.width : nullptr;
                normed_heads(layer.out + first * layer.N, layer.norm, turns, now.count, layer.N / layer.width, layer.width,
                             layer.eps);
            }
        }
    });
}

// base + gate·second(GELU(first(x))), K -> H -> N
template <class T>
void feed_forward(const T* x, long tokens, long K, long H, long N, const Weights& first_layer, const Weights& second_layer,
                  T* out, const T* base, const float* gate, long threads) {
    const T *first_weight = static_cast<const T*>(first_layer.weight), *first_bias = static_cast<const T*>(first_layer.bias);
    const T* second_weight = static_cast<const T*>(second_layer.weight);
    const T* second_bias = static_cast<const T*>(second_layer.bias);
    constexpr int PER_UNIT = Product<T>::PER_UNIT;
    over_tiles(tokens, static_cast<double>(tokens) * H * (K + N), threads, [&](const auto& next, long most) {
        const long size = K / PER_UNIT * TILE, inner = H / PER_UNIT * TILE;  // of the lanes of a tile
        Scratch packed(most * size * 4), hidden(most * inner * 4), given(ROWS * TILE * 4);
        uint32_t *lanes = packed.as<uint32_t>(), *middle = hidden.as<uint32_t>();
        float* sums = given.as<float>();
        for (long first; (first = next()) >= 0;) {
            const Stretch now{first, tokens - first < most * TILE ? tokens - first : most * TILE};
            for (int t = 0; t < now.tiles(); ++t)
                pack_queries<T, T>(x + now.at(t) * K, K, now.have(t), static_cast<int>(K), lanes + t * size);
            for (long h = 0; h < H; h += ROWS) {
                const int rows = static_cast<int>(H - h < ROWS ? H - h : ROWS);
                for (int t = 0; t < now.tiles(); ++t) {
                    blocks<T>(lanes + t * size, first_weight + h * K, K, rows, now.columns(t), sums);
                    to_lanes(sums, rows, first_bias ? first_bias + h : nullptr,
                             middle + t * inner + h / PER_UNIT * TILE, now.columns(t));
                }
            }
            for (long n = 0; n < N; n += ROWS) {
                const int rows = static_cast<int>(N - n < ROWS ? N - n : ROWS);
                for (int t = 0; t < now.tiles(); ++t) {
                    const long at = now.at(t) * N + n;
                    blocks<T>(middle + t * inner, second_weight + n * H, H, rows, now.columns(t), sums);
                    to_tokens(sums, rows, second_bias ? second_bias + n : nullptr, base + at, gate + n, out + at, N,
                              now.have(t));
                }
            }
        }
    });
}

// a few rows in float32 with weights of any type: out[m][n] = sum of x[m][k]·weight[n][k] + bias[n]
template <class T>
void few_rows(const float* x, long rows, long K, const T* weight, const T* bias, float* out, long N) {
    for (long n = 0; n < N; ++n, weight += K)
        for (long m = 0; m < rows; ++m) {
            Numbers sum = zeros();
            for (long k = 0; k < K; k += LANES) sum = fmadd(load(x + m * K + k), load(weight + k), sum);
            out[m * N + n] = sum_of(sum) + (bias ? number(bias[n]) : 0.0f);
        }
}

// -- a block of a transformer -----------------------------------------------------------------------------------------

struct Heads {  // an attention: its layers, and the norms of queries and keys, [K] in the type of the weights
    Weights query, key, value, out;
    const void *query_norm, *key_norm;
};

struct Block {
    Weights modulation;       // [9D or 6D][E]: shift, scale and gate of each part
    Heads self, cross;        // `cross.query.weight` null: no attention to a text
    Weights inner, outer;     // of the feed-forward
    int64_t D, E, H, K;       // widths of tokens, of the time vector, of the feed-forward, of a head
    float norm_eps, heads_eps;
};

struct Work {
    const void* x;            // [B][S][D]
    const void* text;         // [B][L][D]
    const float* e;           // [B][E], after its activation
    const float* turns;       // [S][K], see `normed_heads`; null: nothing is turned
    const uint8_t* counted;   // [B][L], which tokens of the text count, [B][S] without a text; null: all
    void* out;                // [B][S][D]
    int64_t B, S, L, threads;
};

template <class T>
void mix(const T* q, const T* k, const T* v, T* out, const uint8_t* counted, long S, long L, long D, long K, long threads) {
    Attention work{};
    work.q = q, work.k = k, work.v = v, work.out = out, work.counted = counted;
    for (auto* strides : {work.q_strides, work.k_strides, work.v_strides}) strides[1] = D, strides[2] = K;
    work.B = 1, work.S = S, work.L = L, work.N = D / K, work.K = K, work.threads = threads;
    work.scale = 1.0f / std::sqrt(static_cast<float>(K));
    attend<T, typename Mixed<T>::Type>(work);
}

// x, and what each part answers to its norm and modulation, through a gate: attention, attention to a text, feed-forward
template <class T> void run_block(const Block& block, const Work& work) {
    const long D = block.D, S = work.S, L = work.L, K = block.K, threads = work.threads;
    const bool sees_text = block.cross.query.weight;
    const int parts = sees_text ? 3 : 2;
    Scratch vectors(parts * 3 * D * 4), norms(4 * K * 4), tokens(5 * S * D * sizeof(T)), texts(2 * L * D * sizeof(T));
    float *m = vectors.as<float>(), *weights = norms.as<float>();
    T *normed = tokens.as<T>(), *q = normed + S * D, *k = q + S * D, *v = k + S * D, *mixed = v + S * D;
    T *text_k = texts.as<T>(), *text_v = text_k + L * D;
    const void* each[4] = {block.self.query_norm, block.self.key_norm, block.cross.query_norm, block.cross.key_norm};
    for (int i = 0; i < (sees_text ? 4 : 2); ++i)
        for (long at = 0; at < K; ++at) weights[i * K + at] = number(static_cast<const T*>(each[i])[at]);
    for (long b = 0; b < work.B; ++b) {
        const T* x = static_cast<const T*>(work.x) + b * S * D;
        T* out = static_cast<T*>(work.out) + b * S * D;
        few_rows(work.e + b * block.E, 1, block.E, static_cast<const T*>(block.modulation.weight),
                 static_cast<const T*>(block.modulation.bias), m, parts * 3 * D);
        for (int part = 0; part < parts; ++part)
            for (long d = 0; d < D; ++d) m[(3 * part + 1) * D + d] += 1.0f;
        const auto norm = [&](const T* from, int part) {
            in_stretches(S, D, threads, [&](long first, long rows) {
                modulated(from + first * D, m + (3 * part + 1) * D, m + 3 * part * D, normed + first * D, rows, D,
                          block.norm_eps);
            });
        };
        const auto back = [&](const Heads& heads, const T* base, int part) {
            const Layer<T> layer{heads.out, out, D, nullptr, nullptr, K, 0.0f};
            project<T>(mixed, S, D, &layer, 1, base, m + (3 * part + 2) * D, threads);
        };
        const uint8_t* counted = work.counted ? work.counted + b * (sees_text ? L : S) : nullptr;
        norm(x, 0);
        const Layer<T> own[3] = {{block.self.query, q, D, weights, work.turns, K, block.heads_eps},
                                 {block.self.key, k, D, weights + K, work.turns, K, block.heads_eps},
                                 {block.self.value, v, D, nullptr, nullptr, K, 0.0f}};
        project<T>(normed, S, D, own, 3, nullptr, nullptr, threads);
        mix(q, k, v, mixed, sees_text ? nullptr : counted, S, S, D, K, threads);
        back(block.self, x, 0);
        if (sees_text) {
            norm(out, 1);
            const Layer<T> query{block.cross.query, q, D, weights + 2 * K, nullptr, K, block.heads_eps};
            const Layer<T> pair[2] = {{block.cross.key, text_k, D, weights + 3 * K, nullptr, K, block.heads_eps},
                                      {block.cross.value, text_v, D, nullptr, nullptr, K, 0.0f}};
            project<T>(normed, S, D, &query, 1, nullptr, nullptr, threads);
            project<T>(static_cast<const T*>(work.text) + b * L * D, L, D, pair, 2, nullptr, nullptr, threads);
            mix(q, text_k, text_v, mixed, counted, S, L, D, K, threads);
            back(block.cross, out, 1);
        }
        norm(out, parts - 1);
        feed_forward<T>(normed, S, D, block.H, D, block.inner, block.outer, out, out, m + (3 * parts - 1) * D, threads);
    }
}

// -- volumes of pixels ------------------------------------------------------------------------------------------------
// Frames, rows, columns, channels; the channels lie together.

struct Volume {
    const void* x;                // [B][T][H][W][C]
    void* out;                    // [B][front + T][H + 2·side][W + 2·side][C]: edges are repeated
    const float *weight, *bias;   // [C] of a group norm; null: none
    int64_t B, T, H, W, C, groups, front, side, threads;
    int32_t activates;            // whether x·sigmoid(x) follows
    float eps;
};

// calls work(item) for all items, in as many threads as are worth starting
template <class Do> void over_items(long items, long numbers, long threads, const Do& work) {
    constexpr long LEAST = 1 << 17;  // numbers of a thread
    long workers = numbers / LEAST < threads ? numbers / LEAST : threads;
    workers = workers < 1 ? 1 : workers < items ? workers : items;
    std::atomic<long> next{0};
    const auto run = [&] {
        for (long at; (at = next.fetch_add(1)) < items;) work(at);
    };
    std::vector<std::thread> others;
    for (long i = 1; i < workers && begun(others, run); ++i) {}
    run();
    for (auto& other : others) other.join();
}

struct Moments {  // of some numbers; joined by Chan's rule
    double count = 0.0, mean = 0.0, squares = 0.0;
    void add(double n, double m, double s) {
        const double whole = count + n, away = m - mean;
        squares += s + away * away * (count * n / whole);
        mean += away * (n / whole);
        count = whole;
    }
};

// of each group, over a frame: sums in float32 of what is beyond the first pixel of a stretch, joined in double
template <class T> void add_moments(const T* x, long pixels, long C, long groups, Moments* found) {
    constexpr long STRETCH = 512;
    Scratch memory(3 * C * 4);
    float *first = memory.as<float>(), *sums = first + C, *squares = sums + C;
    for (long start = 0; start < pixels; start += STRETCH) {
        const long count = pixels - start < STRETCH ? pixels - start : STRETCH;
        const T* at = x + start * C;
        for (long c = 0; c < C; c += LANES) store(first + c, load(at + c));
        for (long c = 0; c < C; c += LANES) {
            const Numbers zero = load(first + c);
            Numbers sum = zeros(), square = sum;
            for (long p = 0; p < count; ++p) {
                const Numbers y = sub(load(at + p * C + c), zero);
                sum = add(sum, y);
                square = fmadd(y, y, square);
            }
            store(sums + c, sum), store(squares + c, square);
        }
        for (long c = 0; c < C; ++c) {
            const double mean = sums[c] / static_cast<double>(count);
            found[c / (C / groups)].add(count, first[c] + mean, squares[c] - sums[c] * mean);
        }
    }
}

inline Numbers silu(Numbers x) {
    const Numbers power = smaller(mul(x, all(-LOG2_E)), all(126.0f));
    const Numbers whole = add(power_of_two<true>(power), all(1.0f));
    return mul(x, reciprocal(whole));
}

template <class T> void normed_volume(const Volume& work) {
    const long C = work.C, H = work.H, W = work.W, side = work.side, front = work.front, wide = W + 2 * side;
    const long frame = H * W * C, out_frame = (H + 2 * side) * wide * C, clip = (front + work.T) * out_frame;
    Scratch memory(2 * C * 4);
    float *scale = memory.as<float>(), *shift = scale + C;
    for (long b = 0; b < work.B; ++b) {
        const T* x = static_cast<const T*>(work.x) + b * work.T * frame;
        T* out = static_cast<T*>(work.out) + b * clip;
        if (work.weight) {
            std::vector<Moments> each(work.T * work.groups), all(work.groups);
            over_items(work.T, work.T * frame, work.threads, [&](long t) {
                add_moments(x + t * frame, H * W, C, work.groups, each.data() + t * work.groups);
            });
            for (long t = 0; t < work.T; ++t)
                for (long g = 0; g < work.groups; ++g) {
                    const Moments& one = each[t * work.groups + g];
                    all[g].add(one.count, one.mean, one.squares);
                }
            for (long c = 0; c < C; ++c) {
                const Moments& of = all[c / (C / work.groups)];
                const double share = work.weight[c] / std::sqrt(of.squares / of.count + work.eps);
                scale[c] = static_cast<float>(share);
                shift[c] = static_cast<float>(work.bias[c] - of.mean * share);
            }
        }
        over_items(work.T, work.T * frame, work.threads, [&](long t) {
            T* to = out + (front + t) * out_frame;
            for (long h = 0; h < H; ++h) {
                const T* from = x + t * frame + h * W * C;
                T* row = to + ((h + side) * wide + side) * C;
                if (!work.weight && !work.activates) std::memcpy(row, from, W * C * sizeof(T));
                else
                    for (long w = 0; w < W; ++w)
                        for (long c = 0; c < C; c += LANES) {
                            Numbers y = load(from + w * C + c);
                            if (work.weight) y = as_type(fmadd(y, load(scale + c), load(shift + c)), T{});
                            store(row + w * C + c, work.activates ? silu(y) : y);
                        }
                for (long i = 1; i <= side; ++i) {
                    std::memcpy(row - i * C, row, C * sizeof(T));
                    std::memcpy(row + (W - 1 + i) * C, row + (W - 1) * C, C * sizeof(T));
                }
            }
            for (long i = 0; i < side; ++i) {
                std::memcpy(to + i * wide * C, to + side * wide * C, wide * C * sizeof(T));
                std::memcpy(to + (H + side + i) * wide * C, to + (H + side - 1) * wide * C, wide * C * sizeof(T));
            }
            for (long i = 0; t == 0 && i < front; ++i) std::memcpy(out + i * out_frame, to, out_frame * sizeof(T));
        });
    }
}

// -- images -----------------------------------------------------------------------------------------------------------
// Rows, columns, channels; the channels lie together.

struct Image {
    const void* x;               // [B][H][W][C]
    void* out;                   // the same
    const float *weight, *bias;  // [C] of a group norm over each image
    const void *scale, *shift;   // [B][h][w][C], by which what is normed is multiplied and shifted, each of a piece of the
                                 // image, H/h rows and W/w columns; null: none
    int64_t B, H, W, C, groups, h, w, threads;
    int32_t activates;           // whether x·sigmoid(x) follows
    float eps;
};

template <class T> void normed_image(const Image& work) {
    const long C = work.C, H = work.H, W = work.W, row = W * C, groups = work.groups;
    const long each = (1 << 14) / row + 1, pieces = (H + each - 1) / each;  // of rows
    Scratch memory(2 * C * 4);
    float *scale = memory.as<float>(), *shift = scale + C;
    for (long b = 0; b < work.B; ++b) {
        const T* x = static_cast<const T*>(work.x) + b * H * row;
        T* out = static_cast<T*>(work.out) + b * H * row;
        std::vector<Moments> found(pieces * groups), all(groups);
        const auto count = [&](long piece) { return (H - piece * each < each ? H - piece * each : each) * W; };
        over_items(pieces, H * row, work.threads, [&](long piece) {
            add_moments(x + piece * each * row, count(piece), C, groups, found.data() + piece * groups);
        });
        for (long at = 0; at < pieces * groups; ++at)
            all[at % groups].add(found[at].count, found[at].mean, found[at].squares);
        for (long c = 0; c < C; ++c) {
            const Moments& of = all[c / (C / groups)];
            const double share = work.weight[c] / std::sqrt(of.squares / of.count + work.eps);
            scale[c] = static_cast<float>(share);
            shift[c] = static_cast<float>(work.bias[c] - of.mean * share);
        }
        const long tall = work.scale ? H / work.h : H, wide = work.scale ? W / work.w : W;
        over_items(pieces, H * row, work.threads, [&](long piece) {
            for (long at = piece * each * W; at < piece * each * W + count(piece); at += wide) {  // pixels of one piece
                const long place = ((b * work.h + at / W / tall) * work.w + at % W / wide) * C;
                const T *from = x + at * C, *more = static_cast<const T*>(work.scale) + place;
                const T* beside = static_cast<const T*>(work.shift) + place;
                T* to = out + at * C;
                for (long c = 0; c < C; c += LANES) {
                    const Numbers of_group = load(scale + c), from_group = load(shift + c);
                    Numbers of_piece = of_group, from_piece = from_group;
                    if (work.scale) of_piece = load(more + c), from_piece = load(beside + c);
                    for (long i = 0; i < wide; ++i) {
                        Numbers y = as_type(fmadd(load(from + i * C + c), of_group, from_group), T{});
                        if (work.scale) y = as_type(fmadd(y, of_piece, from_piece), T{});
                        store(to + i * C + c, work.activates ? silu(y) : y);
                    }
                }
            }
        });
    }
}

}  // namespace

extern "C" {

int kandinsky_version() { return 3; }

int kandinsky_attention(const Attention* work, int is_bfloat16) {
    if (!is_bfloat16) attend<float, float>(*work);
    else attend<bf16, Mixed<bf16>::Type>(*work);
    return 0;
}

void kandinsky_normed_heads(void* x, const float* weight, const float* table, long tokens, long heads, long K, float eps,
                            int is_bfloat16, long threads) {
    in_stretches(tokens, heads * K, threads, [=](long first, long rows) {
        const float* turns = table ? table + first * K : nullptr;
        if (is_bfloat16) normed_heads(static_cast<bf16*>(x) + first * heads * K, weight, turns, rows, heads, K, eps);
        else normed_heads(static_cast<float*>(x) + first * heads * K, weight, turns, rows, heads, K, eps);
    });
}

void kandinsky_modulated(const void* x, const float* scale, const float* shift, void* out, long rows, long D, float eps,
                         int is_bfloat16, long threads) {
    in_stretches(rows, D, threads, [=](long first, long count) {
        const long at = first * D;
        if (is_bfloat16)
            modulated(static_cast<const bf16*>(x) + at, scale, shift, static_cast<bf16*>(out) + at, count, D, eps);
        else modulated(static_cast<const float*>(x) + at, scale, shift, static_cast<float*>(out) + at, count, D, eps);
    });
}

void kandinsky_gated(const void* x, const float* gate, void* update, long rows, long D, int is_bfloat16, long threads) {
    in_stretches(rows, D, threads, [=](long first, long count) {
        const long at = first * D;
        if (is_bfloat16) gated(static_cast<const bf16*>(x) + at, gate, static_cast<bf16*>(update) + at, count, D);
        else gated(static_cast<const float*>(x) + at, gate, static_cast<float*>(update) + at, count, D);
    });
}

void kandinsky_block(const Block* block, const Work* work, int is_bfloat16) {
    if (is_bfloat16) run_block<bf16>(*block, *work);
    else run_block<float>(*block, *work);
}

void kandinsky_few_rows(const float* x, long rows, long K, const void* weight, const void* bias, float* out, long N,
                        int is_bfloat16) {
    if (is_bfloat16) few_rows(x, rows, K, static_cast<const bf16*>(weight), static_cast<const bf16*>(bias), out, N);
    else few_rows(x, rows, K, static_cast<const float*>(weight), static_cast<const float*>(bias), out, N);
}

void kandinsky_normed_volume(const Volume* work, int is_bfloat16) {
    if (is_bfloat16) normed_volume<bf16>(*work);
    else normed_volume<float>(*work);
}

void kandinsky_normed_image(const Image* work, int is_bfloat16) {
    if (is_bfloat16) normed_image<bf16>(*work);
    else normed_image<float>(*work);
}
}
