// Tokens of a LLaMA-2 for a few rows, on a CPU: all layers, and the choice of the next token, in one call, in float32, whatever the weights are held in.
// native.py compiles this file where it runs and fills the structs, whose fields it repeats in the same order. It is one
// file, beyond our usual length, so that one call of a compiler without any setting makes it.
//
// A step is a sequence of phases, each shared out over the threads in chunks that whoever is free takes next, with a
// barrier behind. The residual stream is each thread's own: all add the same numbers, so nobody waits to read it.
// Many rows are cut into parts instead, each of which one thread takes through all phases.
// Shapes: B rows, C hidden_size, F intermediate_size, H heads, K key-value heads, D head_dim, V vocabulary.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// ── vectors ─────────────────────────────────────────────────────────────────────────────────────────────────────────
#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));

struct BFloat { uint16_t bits; };
struct Half { uint16_t bits; };

inline Ints widened(const uint16_t* p) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
    Ints v;
    for (int i = 0; i < W; i++) v[i] = p[i];
    return v;
#endif
}
inline Ints widened(const uint8_t* p) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    Ints v;
    for (int i = 0; i < W; i++) v[i] = p[i];
    return v;
#endif
}
inline Ints widened(const int8_t* p) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    Ints v;
    for (int i = 0; i < W; i++) v[i] = p[i];
    return v;
#endif
}

inline Floats load(const float* p) { Floats v; memcpy(&v, p, sizeof v); return v; }
inline Floats load(const int8_t* p) { return __builtin_convertvector(widened(p), Floats); }
inline Floats load(const BFloat* p) { return (Floats)(widened(&p->bits) << 16); }
inline float value(float v) { return v; }
inline float value(BFloat v) { uint32_t bits = (uint32_t)v.bits << 16; float f; memcpy(&f, &bits, 4); return f; }
inline float value(Half v) {
    uint32_t sign = (uint32_t)(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff, bits;
    if (rest >= 0x7c00) bits = 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400) bits = (rest << 13) + 0x38000000;
    else { float small = (float)rest * 0x1p-24f; memcpy(&bits, &small, 4); }
    bits |= sign;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline Floats load(const Half* p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__) && defined(__AVX2__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    Floats v;
    for (int i = 0; i < W; i++) v[i] = value(p[i]);
    return v;
#endif
}
inline void put(float* p, float v) { *p = v; }
inline void put(BFloat* p, float v) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &v, 4);
    p->bits = v != v ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void put(Half* p, float v) {
    uint32_t bits, sign;
    memcpy(&bits, &v, 4);
    sign = bits >> 16 & 0x8000, bits &= 0x7fffffff;
    if (bits >= 0x47800000) p->bits = (uint16_t)(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
    else if (bits < 0x38800000) {
        float shifted;
        memcpy(&shifted, &bits, 4);
        p->bits = (uint16_t)(sign | (uint32_t)nearbyintf(shifted * 0x1p24f));
    } else p->bits = (uint16_t)(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

inline float sum(Floats v) {
    float s[W], total = 0;
    memcpy(s, &v, sizeof v);
    for (int i = 0; i < W; i++) total += s[i];
    return total;
}

inline float exponential(float x) {  // Cephes' expf without its branches: compilers make vectors of it
    x = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
    float n = nearbyintf(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f, p = p * r + 8.3334519073e-3f, p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f, p = p * r + 5.0000001201e-1f, p = p * r * r + r + 1.f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

}  // namespace

// ── what native.py fills ────────────────────────────────────────────────────────────────────────────────────────────
enum Kind : int64_t { FLOAT, BFLOAT, HALF, EIGHT, FOUR };

struct Matrix {  // y = normed(W · round(before ⊙ x[order])) + kept · x[kept_index], W = scale · (code − zero) by groups
    int64_t kind, outputs, inputs, padded, group, groups;  // padded: inputs that a row of codes has
    const void *data, *scales, *zeros;  // of one group (outputs,) float; of more (outputs, spaced(groups)) half and int8
    const int32_t* order;          // (inputs,) or null
    const float* before;           // (inputs,) or null
    const int32_t* kept_index;     // (kept_count,)
    const float* kept;             // (outputs, kept_count)
    int64_t kept_count, rounds, normed;
};
struct Layer { const float *first_norm, *second_norm; Matrix q, k, v, o, gate, up, down; };
struct Model {
    int64_t layers, width, inner, heads, kv_heads, head_dim;
    float eps;
    const Layer* layer;
    const float *norm, *cos, *sin;  // (C,); (positions, D)
    Matrix embedding, head;
};
struct Call {
    int64_t rows, threads, dtype, layer_stride, row_stride, head_stride, slot_stride;  // strides in elements
    const int64_t *tokens, *positions, *places;  // (B,); places: the cache's row of each
    void *keys, *values;
    float* logits;  // (wanted_count, V)
    int64_t wanted_count;
    const int64_t* wanted;  // (wanted_count,) the rows after which logits are wanted, ascending
};

namespace {

// ── products ────────────────────────────────────────────────────────────────────────────────────────────────────────
// Rows of x as a matrix wants them; sums of groups. For codes of four bits, where the hardware multiplies bytes, x in `steps`
// is a whole number of three signed bytes, `digits`: of each block of codes all first ones, then the others. `lanes` are the
// groups of a block's 16 sums, counted from its first one, `firsts`. Sums are in steps then.
constexpr int64_t DIGITS = 3, BLOCK = 128;
struct Inputs {
    const float *x, *sums;
    int64_t stride, groups;
    const int8_t* digits = nullptr;
    int64_t digit_stride = 0;
    const int32_t *lanes = nullptr, *firsts = nullptr;
    const float* steps = nullptr;
};

// Of R rows of x, which share what is read and made of the weights. One output at a time reads memory from one end to the
// other, and several sums of it do not wait for each other: on a Zen 4, 35 GB/s instead of 27 with four outputs in turns.
template <class T, int R>
void dense(const Matrix& m, Inputs in, float* y, int64_t stride, int64_t from, int64_t to) {
    constexpr int SUMS = R == 1 ? 8 : 1;
    for (int64_t n = from; n < to; n++) {
        const T* w = (const T*)m.data + n * m.inputs;
        Floats total[R][SUMS] = {};
        auto add = [&](int64_t k, int which) {
            Floats weight = load(w + k);
            for (int r = 0; r < R; r++) total[r][which] += weight * load(in.x + r * in.stride + k);
        };
        int64_t k = 0;
        for (; k + SUMS * W <= m.inputs; k += SUMS * W)
            for (int i = 0; i < SUMS; i++) add(k + i * W, i);
        for (; k + W <= m.inputs; k += W) add(k, 0);
        for (int r = 0; r < R; r++) {
            for (int i = 1; i < SUMS; i++) total[r][0] += total[r][i];
            float rest = sum(total[r][0]);
            for (int64_t i = k; i < m.inputs; i++) rest += value(w[i]) * in.x[r * in.stride + i];
            y[r * stride + n] = rest;
        }
    }
}

// Of codes N outputs at a time, which share what is read of x. What the hardware follows too late is asked for before.
constexpr int AHEAD = 4096;  // bytes
inline void ask_for(const void* p) { __builtin_prefetch((const char*)p + AHEAD); }

struct Eight {  // signed bytes
    static const uint8_t* row(const Matrix& m, int64_t n) { return (const uint8_t*)m.data + n * m.padded; }
    template <int R>
    static void add(const uint8_t* codes, int64_t k, const float* x, int64_t stride, Floats* part) {  // UNIT codes
        for (int i = 0; i < 16; i += W) {
            Floats weight = load((const int8_t*)codes + k + i);
            for (int r = 0; r < R; r++) part[r] += weight * load(x + r * stride + k + i);
        }
    }
    static constexpr int UNIT = 16, BYTES = 16;
};
inline Floats lower(Ints bytes) {  // the lower four bits of each as a float
#if defined(__AVX512F__)
    const __m512 numbers = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return (Floats)_mm512_permutexvar_ps((__m512i)bytes, numbers);
#else
    return __builtin_convertvector(bytes & 15, Floats);
#endif
}
// 16 bytes are 32 codes, a … in the lower halves, b … in the upper ones. a·x + b·y = a·(x − y/16) + (a + 16·b)·y/16
// takes a byte as it is for b; `prepared` has made x − y/16 and y/16 of x and y.
struct Four {
    static const uint8_t* row(const Matrix& m, int64_t n) { return (const uint8_t*)m.data + n * m.padded / 2; }
    template <int R>
    static void add(const uint8_t* codes, int64_t k, const float* x, int64_t stride, Floats* part) {
        for (int i = 0; i < 16; i += W) {
            Ints pair = widened(codes + k / 2 + i);
            Floats low = lower(pair), both = __builtin_convertvector(pair, Floats);
            for (int r = 0; r < R; r++) {
                part[r] += low * load(x + r * stride + k + i);
                part[r] += both * load(x + r * stride + k + i + 16);
            }
        }
    }
    static constexpr int UNIT = 32, BYTES = 16;
};

inline int64_t spaced(int64_t groups) { return groups == 1 ? 1 : (groups + 15) / 16 * 16; }

template <class Codes, int R, int N>
inline void add_codes(const Matrix& m, Inputs in, int64_t n, int64_t from, int64_t to, Floats (&part)[N][R]) {
    for (int64_t k = from; k < to; k += Codes::UNIT)
        for (int j = 0; j < N; j++) {
            const uint8_t* codes = Codes::row(m, n + j);
            ask_for(codes + k * Codes::BYTES / Codes::UNIT);
            Codes::template add<R>(codes, k, in.x, in.stride, part[j]);
        }
}

template <class Codes, int R, int N>
void whole_rows(const Matrix& m, Inputs in, float* y, int64_t stride, int64_t from, int64_t to) {
    const float *scales = (const float*)m.scales, *zeros = (const float*)m.zeros;
    for (int64_t n = from; n < to; n += N) {
        Floats total[N][R] = {};
        add_codes<Codes, R, N>(m, in, n, 0, m.padded, total);
        for (int j = 0; j < N; j++)
            for (int r = 0; r < R; r++)
                y[r * stride + n + j] = scales[n + j] * (sum(total[j][r]) - zeros[n + j] * in.sums[r]);
    }
}

template <class Codes, int R, int N>
void grouped(const Matrix& m, Inputs in, float* y, int64_t stride, int64_t from, int64_t to) {
    if (m.groups == 1) return whole_rows<Codes, R, N>(m, in, y, stride, from, to);
    constexpr int SOME = 64;  // groups whose scales are made floats at a time
    int64_t line = spaced(m.groups);
    float scales[N][SOME];
    for (int64_t n = from; n < to; n += N) {
        Floats total[N][R] = {};
        for (int64_t first = 0; first < m.groups; first += SOME) {
            int64_t last = first + SOME < line ? first + SOME : line;
            for (int j = 0; j < N; j++)
                for (int64_t g = first; g < last; g += W) {
                    int64_t place = (n + j) * line + g;
                    Floats scale = load((const Half*)m.scales + place), zero = load((const int8_t*)m.zeros + place) * scale;
                    memcpy(&scales[j][g - first], &scale, sizeof scale);
                    for (int r = 0; r < R; r++) total[j][r] -= zero * load(in.sums + r * line + g);
                }
            for (int64_t g = first; g < last && g < m.groups; g++) {
                Floats part[N][R] = {};
                add_codes<Codes, R, N>(m, in, n, g * m.group, g + 1 < m.groups ? (g + 1) * m.group : m.padded, part);
                for (int j = 0; j < N; j++)
                    for (int r = 0; r < R; r++) total[j][r] += part[j][r] * scales[j][g - first];
            }
        }
        for (int j = 0; j < N; j++)
            for (int r = 0; r < R; r++) y[r * stride + n + j] = sum(total[j][r]);
    }
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
// Sums of bytes times bytes are exact, and x keeps 24 bits of its row's largest. On a Zen 4 twice as fast as `Four`; codes of
// eight bits gain nothing, since they are half as many in a register and need a product each.
constexpr bool BYTES = true;
constexpr int64_t MOST_GROUPS = 1024;
template <int R, int N>
void by_bytes(const Matrix& m, Inputs in, float* y, int64_t stride, int64_t from, int64_t to) {
    const int64_t bytes = m.padded / 2, blocks = (bytes + 63) / 64, line = spaced(m.groups);
    const __mmask64 last = bytes % 64 ? ((__mmask64)1 << bytes % 64) - 1 : ~(__mmask64)0;
    const __m512i four = _mm512_set1_epi8(15);
    float scales[N][MOST_GROUPS];
    for (int64_t n = from; n < to; n += N) {
        __m512 total[N][R];
        for (int j = 0; j < N; j++)
            for (int r = 0; r < R; r++) total[j][r] = _mm512_setzero_ps();
        for (int j = 0; j < N && m.groups > 1; j++)
            for (int64_t g = 0; g < line; g += W) {
                int64_t place = (n + j) * line + g;
                Floats scale = load((const Half*)m.scales + place), zero = load((const int8_t*)m.zeros + place) * scale;
                memcpy(&scales[j][g], &scale, sizeof scale);
                for (int r = 0; r < R; r++) total[j][r] -= (__m512)(zero * load(in.sums + r * line + g));
            }
        for (int64_t b = 0; b < blocks; b++) {
            const __mmask64 mask = b + 1 < blocks ? ~(__mmask64)0 : last;
            const __m512i lanes = _mm512_loadu_si512(in.lanes + 16 * b);
            for (int j = 0; j < N; j++) {
                const uint8_t* place = (const uint8_t*)m.data + (n + j) * bytes + 64 * b;
                ask_for(place);
                __m512i pairs = _mm512_maskz_loadu_epi8(mask, place), lower = _mm512_and_si512(pairs, four);
                __m512i upper = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), four);
                __m512 scale = _mm512_set1_ps(1.f);
                if (m.groups > 1) scale = _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(scales[j] + in.firsts[b]));
                for (int r = 0; r < R; r++) {
                    const int8_t* digits = in.digits + r * in.digit_stride + DIGITS * BLOCK * b;
                    __m512i all = _mm512_setzero_si512();
                    for (int d = 0; d < DIGITS; d++) {
                        all = _mm512_dpbusd_epi32(_mm512_slli_epi32(all, 8), lower, _mm512_loadu_si512(digits + d * BLOCK));
                        all = _mm512_dpbusd_epi32(all, upper, _mm512_loadu_si512(digits + d * BLOCK + 64));
                    }
                    total[j][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, total[j][r]);
                }
            }
        }
        for (int j = 0; j < N; j++)
            for (int r = 0; r < R; r++) {
                float found = sum((Floats)total[j][r]);
                if (m.groups == 1)
                    found = ((const float*)m.scales)[n + j] * (found - ((const float*)m.zeros)[n + j] * in.sums[r]);
                y[r * stride + n + j] = found * in.steps[r];
            }
    }
}
#else
constexpr bool BYTES = false;
constexpr int64_t MOST_GROUPS = 0;
template <int R, int N>
void by_bytes(const Matrix&, Inputs, float*, int64_t, int64_t, int64_t) {}
#endif

template <int R, int N>
void product(const Matrix& m, Inputs in, float* y, int64_t stride, int64_t from, int64_t to) {
    switch (m.kind) {
        case FLOAT: return dense<float, R>(m, in, y, stride, from, to);
        case BFLOAT: return dense<BFloat, R>(m, in, y, stride, from, to);
        case HALF: return dense<Half, R>(m, in, y, stride, from, to);
        case EIGHT: return grouped<Eight, R, R == 1 ? 1 : N>(m, in, y, stride, from, to);
        default:
            if (in.digits) return by_bytes<R, N>(m, in, y, stride, from, to);
            return grouped<Four, R, N>(m, in, y, stride, from, to);
    }
}
template <int R>
void product(const Matrix& m, Inputs in, float* y, int64_t stride, int64_t from, int64_t to) {
    constexpr int N = 4 / R;
    int64_t whole = from + (to - from) / N * N;
    product<R, N>(m, in, y, stride, from, whole);
    if (whole < to) product<R, 1>(m, in, y, stride, whole, to);
}

void row_of(const Matrix& m, int64_t n, float* out) {  // dequantised, in the model's order of inputs
    for (int64_t k = 0; k < m.inputs; k++) {
        float v;
        if (m.kind == FLOAT) v = ((const float*)m.data)[n * m.inputs + k];
        else if (m.kind == BFLOAT) v = value(((const BFloat*)m.data)[n * m.inputs + k]);
        else if (m.kind == HALF) v = value(((const Half*)m.data)[n * m.inputs + k]);
        else {
            int64_t g = k / m.group < m.groups ? k / m.group : m.groups - 1, place = n * m.padded + k;
            float code = m.kind == EIGHT ? ((const int8_t*)m.data)[place]
                       : ((const uint8_t*)m.data)[n * m.padded / 2 + k / 32 * 16 + k % 16] >> (k % 32 / 16 * 4) & 15;
            if (m.groups == 1) v = ((const float*)m.scales)[n] * (code - ((const float*)m.zeros)[n]);
            else {
                int64_t its = n * spaced(m.groups) + g;
                v = value(((const Half*)m.scales)[its]) * (code - ((const int8_t*)m.zeros)[its]);
            }
        }
        out[m.order ? m.order[k] : k] = v;
    }
}

// ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// A number that threads wait for to change. They spin for some 50 µs and then sleep: the core then goes to whom they wait
// for, a thread whose own core others have taken, or to a server's HTTP.
class Signal {
    std::atomic<int64_t> number{0};
    std::mutex lock;
    std::condition_variable changed;

   public:
    int64_t now() const { return number.load(std::memory_order_acquire); }
    void next() {
        { std::lock_guard<std::mutex> held(lock); number.fetch_add(1, std::memory_order_release); }
        changed.notify_all();
    }
    template <class F>
    void wait(F there) {  // until there() is true, which follows from a `next`
        for (int spins = 0; spins < 4000; spins++) {
            if (there()) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        std::unique_lock<std::mutex> held(lock);
        changed.wait(held, there);
    }
};

// The threads beside the one that calls, one call at a time: of two at once the second goes alone. Not OpenMP's: those
// wait for more work by spinning, milliseconds long, on cores that others want.
class Helpers {
    std::mutex in_use;
    Signal begun, ended;
    const std::function<void()>* work = nullptr;
    std::atomic<int64_t> places{0}, running{0};  // of a round: helpers that may still begin, that have begun
    int64_t count = 0;

    void live() {
        for (int64_t seen = 0;;) {
            begun.wait([&] { return begun.now() != seen; });
            seen = begun.now();
            running++;  // before the place is taken: who gives none any more looks here then
            for (int64_t left = places; left > 0;)
                if (places.compare_exchange_weak(left, left - 1)) {
                    (*work)();
                    break;
                }
            running--;
            ended.next();
        }
    }

   public:
    // work(size) by `size` threads, at most `threads`. Who has not begun when the caller is through need not any more.
    template <class F>
    void run(int64_t threads, F work_of) {
        std::unique_lock<std::mutex> mine(in_use, std::defer_lock);
        if (threads < 2 || !mine.try_lock()) return work_of(1);
        try {
            for (; count + 1 < threads; count++) std::thread(&Helpers::live, this).detach();
        } catch (const std::system_error&) {  // the system gives no more of them
        }
        int64_t size = std::min(threads, count + 1);
        std::function<void()> now = [&] { work_of(size); };
        work = &now, places = size - 1;
        begun.next();
        work_of(size);
        places = 0;
        ended.wait([&] { return running == 0; });
    }
};
Helpers* helpers = new Helpers;  // never freed: its threads end with the process
#ifndef _WIN32
const int in_forks = pthread_atfork(nullptr, nullptr, [] { helpers = new Helpers; });  // a fork has none of the threads
#endif

template <class F>
void each(int64_t count, int64_t threads, F work) {  // work(i) for all i below count
    std::atomic<int64_t> taken{0};
    helpers->run(std::min(threads, count), [&](int64_t) {
        for (int64_t i; (i = taken++) < count;) work(i);
    });
}

struct Team {
    std::atomic<int64_t> size{1}, arrived{0};
    Signal turn;
    std::vector<std::atomic<int64_t>> taken;  // of each phase: how much of it has been given out
    explicit Team(size_t phases) : taken(phases) {}

    void wait() {
        if (size == 1) return;
        int64_t now = turn.now();
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            turn.next();
        } else turn.wait([&] { return turn.now() != now; });
    }
};

struct Worker {  // one thread's way through a step
    const Model& model;
    const Call& call;
    Team& team;
    int64_t phase = 0, rows;  // rows: that are computed now
    std::vector<float> x, normed, mixed, changed[3], sums[3], steps[3], scores;
    std::vector<int8_t> digits[3];
    std::vector<int32_t> lanes[3], firsts[3];

    Worker(const Model& m, const Call& c, Team& t) : model(m), call(c), team(t), rows(c.rows) {}

    // work(from, to) over all of count, then a barrier. Who is free takes two thirds of his share of what is left, at
    // least so much: memory gives long stretches faster, and short ones end together.
    template <class F>
    void shared(int64_t count, int64_t least, F work) {
        std::atomic<int64_t>& taken = team.taken[phase++];
        for (int64_t from = taken, to; from < count;) {
            to = std::min(count, from + std::max(least, (count - from) * 2 / (3 * team.size) / least * least));
            if (taken.compare_exchange_weak(from, to)) work(from, to), from = taken;
        }
        team.wait();
    }

    void norm(const float* weight) {  // RMSNorm of x → normed
        int64_t C = model.width;
        for (int64_t b = 0; b < rows; b++) {
            const float* in = &x[b * C];
            float total = 0;
            for (int64_t i = 0; i < C; i++) total += in[i] * in[i];
            float scale = 1.f / sqrtf(total / C + model.eps);
            for (int64_t i = 0; i < C; i++) normed[b * C + i] = in[i] * scale * weight[i];
        }
    }

    Inputs prepared(const Matrix& m, const float* in, int which) {  // `in` (B, inputs) as the matrix wants it
        if (m.kind <= HALF && !m.order && !m.before && !m.rounds) return {in, nullptr, m.inputs, 0};
        const bool bytes = BYTES && m.kind == FOUR && m.groups <= MOST_GROUPS - 16;
        const int64_t blocks = (m.padded + BLOCK - 1) / BLOCK, each = DIGITS * BLOCK * blocks;
        if (bytes) {
            digits[which].assign(rows * each, 0), steps[which].resize(rows);
            lanes[which].resize(16 * blocks), firsts[which].resize(blocks);
            int64_t g = 0;
            for (int64_t lane = 0; lane < 16 * blocks; lane++) {
                int64_t at = lane / 4 * 32;  // its first code
                while (g + 1 < m.groups && at >= (g + 1) * m.group) g++;
                if (lane % 16 == 0) firsts[which][lane / 16] = (int32_t)g;
                lanes[which][lane] = (int32_t)g - firsts[which][lane / 16];
            }
        }
        for (int64_t b = 0; b < rows; b++) {
            const float* source = in + b * m.inputs;
            float *to = &changed[which][b * m.padded], *sum = &sums[which][b * spaced(m.groups)], largest = 0;
            for (int64_t k = 0; k < m.inputs; k++) to[k] = source[m.order ? m.order[k] : k];
            if (m.before) for (int64_t k = 0; k < m.inputs; k++) to[k] *= m.before[k];
            if (m.rounds) {
                for (int64_t k = 0; k < m.inputs; k++) largest = fmaxf(largest, fabsf(to[k]));
                float step = largest / 127;
                if (step > 0) for (int64_t k = 0; k < m.inputs; k++) to[k] = nearbyintf(to[k] / step) * step;
            }
            for (int64_t k = m.inputs; k < m.padded; k++) to[k] = 0;
            if (bytes) {  // `to` is in steps from here on
                bool finite = true;
                largest = 0;
                for (int64_t k = 0; k < m.inputs; k++) largest = fmaxf(largest, fabsf(to[k])), finite &= to[k] - to[k] == 0;
                const float most = 127 * 65536.f, inverse = largest > 1e-30f ? most / largest : 0;
                steps[which][b] = finite ? largest / most : NAN;
                for (int64_t k = 0; k < m.padded; k++) to[k] = finite ? nearbyintf(to[k] * inverse) : 0;
                for (int64_t k = 0; k < m.padded; k += 16) {  // halves of units, as the codes lie
                    int8_t* place = &digits[which][b * each + k / BLOCK * DIGITS * BLOCK + k % 32 * 4 + k % BLOCK / 32 * 16];
                    int32_t number[16];
                    for (int i = 0; i < 16; i++) number[i] = (int32_t)to[k + i];
                    for (int64_t d = DIGITS - 1; d >= 0; d--)
                        for (int i = 0; i < 16; i++) {
                            place[d * BLOCK + i] = (int8_t)number[i];  // its lowest byte, signed
                            number[i] = (number[i] + 128) >> 8;
                        }
                }
            }
            for (int64_t g = 0; g < m.groups; g++) {
                int64_t end = g + 1 < m.groups ? (g + 1) * m.group : m.padded;
                float total = 0;
                for (int64_t k = g * m.group; k < end; k++) total += to[k];
                sum[g] = total;
            }
            for (int64_t g = m.groups; g < spaced(m.groups); g++) sum[g] = 0;
            if (m.kind == FOUR && !bytes)
                for (int64_t k = 0; k < m.padded; k++)
                    if (k % 32 < 16) to[k + 16] /= 16, to[k] -= to[k + 16];
        }
        Inputs found{changed[which].data(), sums[which].data(), m.padded, spaced(m.groups)};
        if (bytes) {
            found.digits = digits[which].data(), found.digit_stride = each, found.steps = steps[which].data();
            found.lanes = lanes[which].data(), found.firsts = firsts[which].data();
        }
        return found;
    }

    // Matrices of the same input, one after the other as if they were one; all of out (B, outputs) is there behind it.
    struct Linear { const Matrix& m; float* out; };
    template <int COUNT>
    void linear(const float* in, const Linear (&all)[COUNT]) {
        Inputs given[COUNT];
        int64_t total = 0;
        for (int i = 0; i < COUNT; i++) given[i] = prepared(all[i].m, in, i), total += all[i].m.outputs;
        shared(total, 16, [&](int64_t from, int64_t to) {
            for (int i = 0; i < COUNT; i++) {
                int64_t N = all[i].m.outputs, last = to < N ? to : N;
                if (from < last) outputs(all[i].m, in, given[i], all[i].out, from, last);
                from = from < N ? 0 : from - N, to -= N;
                if (to <= 0) break;
            }
        });
        for (const Linear& one : all)
            if (one.m.normed) layer_norm(one.out, one.m.outputs);
    }

    void outputs(const Matrix& m, const float* in, Inputs given, float* out, int64_t from, int64_t to) {
        int64_t N = m.outputs;
        for (int64_t b = 0; b < rows;) {
            Inputs now = given;
            now.x += b * given.stride, now.sums += b * given.groups;
            if (now.digits) now.digits += b * given.digit_stride, now.steps += b;
            int64_t left = rows - b;
            if (left >= 4) product<4>(m, now, out + b * N, N, from, to), b += 4;
            else if (left >= 2) product<2>(m, now, out + b * N, N, from, to), b += 2;
            else product<1>(m, now, out + b * N, N, from, to), b++;
        }
        for (int64_t b = 0; b < rows && m.kept_count; b++)
            for (int64_t n = from; n < to; n++)
                for (int64_t i = 0; i < m.kept_count; i++)
                    out[b * N + n] += m.kept[n * m.kept_count + i] * in[b * m.inputs + m.kept_index[i]];
    }

    void layer_norm(float* out, int64_t N) {  // OneBit's, over all outputs
        shared(rows, 1, [&](int64_t from, int64_t to) {
            for (int64_t b = from; b < to; b++) {
                float *y = out + b * N, mean = 0, square = 0;
                for (int64_t n = 0; n < N; n++) mean += y[n];
                mean /= N;
                for (int64_t n = 0; n < N; n++) square += (y[n] - mean) * (y[n] - mean);
                float scale = 1.f / sqrtf(square / N + 1e-5f);
                for (int64_t n = 0; n < N; n++) y[n] = (y[n] - mean) * scale;
            }
        });
    }

    void turn(float* head, int64_t position) {  // RoPE, pairing i with i + D/2
        int64_t half = model.head_dim / 2;
        const float *cos = model.cos + position * model.head_dim, *sin = model.sin + position * model.head_dim;
        for (int64_t i = 0; i < half; i++) {
            float a = head[i], b = head[i + half];
            head[i] = a * cos[i] - b * sin[i];
            head[i + half] = b * cos[i + half] + a * sin[i + half];
        }
    }

    template <class T>
    void attention(int64_t layer, float* q, float* k, float* v, float* out) {
        int64_t D = model.head_dim, H = model.heads, K = model.kv_heads, pairs = rows * K;
        T *keys = (T*)call.keys + layer * call.layer_stride, *values = (T*)call.values + layer * call.layer_stride;
        auto place = [&](int64_t b, int64_t head) { return call.places[b] * call.row_stride + head * call.head_stride; };
        shared(pairs, (pairs + team.size - 1) / team.size, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i++) {
                int64_t b = i / K, slot = place(b, i % K) + call.positions[b] * call.slot_stride;
                turn(k + i * D, call.positions[b]);
                for (int64_t d = 0; d < D; d++) put(keys + slot + d, k[i * D + d]), put(values + slot + d, v[i * D + d]);
            }
        });
        shared(rows * H, 1, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i++) {
                int64_t b = i / H, position = call.positions[b], base = place(b, i % H / (H / K));
                turn(q + i * D, position);
                attend(q + i * D, keys + base, values + base, position + 1, out + i * D);
            }
        });
    }

    template <class T>
    void attend(const float* q, const T* keys, const T* values, int64_t slots, float* out) {
        int64_t D = model.head_dim;
        if ((int64_t)scores.size() < slots) scores.resize(slots + slots / 2);
        float scale = 1.f / sqrtf((float)D), largest = -INFINITY, total = 0;
        for (int64_t s = 0; s < slots; s++) {
            const T* key = keys + s * call.slot_stride;
            Floats part = {};
            int64_t d = 0;
            for (; d + W <= D; d += W) part += load(q + d) * load(key + d);
            float score = sum(part);
            for (; d < D; d++) score += q[d] * value(key[d]);
            scores[s] = score * scale;
            largest = fmaxf(largest, scores[s]);
        }
        for (int64_t s = 0; s < slots; s++) scores[s] = exponential(scores[s] - largest);
        for (int64_t s = 0; s < slots; s++) total += scores[s];
        for (int64_t d = 0; d < D; d++) out[d] = 0;
        for (int64_t s = 0; s < slots; s++) {
            const T* line = values + s * call.slot_stride;
            float weight = scores[s] / total;
            for (int64_t d = 0; d < D; d++) out[d] += weight * value(line[d]);
        }
    }

    void add(const float* more) {
        for (size_t i = 0; i < x.size(); i++) x[i] += more[i];
    }

    void run(float* q, float* k, float* v, float* attended, float* back, float* gate, float* up) {
        int64_t C = model.width, F = model.inner, B = rows;
        int64_t widest = ((C > F ? C : F) + 63) / 32 * 32;
        x.resize(B * C), normed.resize(B * C), mixed.resize(B * F);
        for (int i = 0; i < 3; i++) changed[i].resize(B * widest), sums[i].resize(B * widest);
        for (int64_t b = 0; b < B; b++) row_of(model.embedding, call.tokens[b], &x[b * C]);
        for (int64_t i = 0; i < model.layers; i++) {
            const Layer& layer = model.layer[i];
            norm(layer.first_norm);
            linear(normed.data(), {{layer.q, q}, {layer.k, k}, {layer.v, v}});
            if (call.dtype == FLOAT) attention<float>(i, q, k, v, attended);
            else if (call.dtype == BFLOAT) attention<BFloat>(i, q, k, v, attended);
            else attention<Half>(i, q, k, v, attended);
            linear(attended, {{layer.o, back}});
            add(back), norm(layer.second_norm);
            linear(normed.data(), {{layer.gate, gate}, {layer.up, up}});
            for (int64_t j = 0; j < B * F; j++) mixed[j] = gate[j] / (1.f + exponential(-gate[j])) * up[j];
            linear(mixed.data(), {{layer.down, back}});
            add(back);
        }
        norm(model.norm);
        rows = call.wanted_count;
        for (int64_t i = 0; i < rows; i++) memmove(&normed[i * C], &normed[call.wanted[i] * C], C * sizeof(float));
        linear(normed.data(), {{model.head, call.logits}});
    }
};

void pass(const Model& model, const Call& call, int64_t threads) {  // of all rows, phase by phase
    int64_t B = call.rows, C = model.width, F = model.inner, KD = model.kv_heads * model.head_dim;
    std::vector<float> shared(B * (4 * C + 2 * KD + 2 * F));
    float *q = shared.data(), *attended = q + B * C, *back = attended + B * C, *k = back + B * C, *v = k + B * KD,
          *gate = v + B * KD, *up = gate + B * F;
    Team team(32 * model.layers + 8);
    helpers->run(threads, [&](int64_t size) {
        team.size = size;
        Worker(model, call, team).run(q, k, v, attended, back, gate, up);
    });
}

// Where many rows are cut, so that before the end nobody waits for a thread whose core others have taken. Large parts come
// first, which read the weights less often, then small ones, with which all end together. Tokens of one text stay
// together: the later ones read what the earlier ones write. Returns where each part ends; of few rows nothing.
std::vector<int64_t> parts(const Call& call) {
    constexpr int64_t LEAST = 8;
    std::vector<int64_t> ends;
    if (call.threads < 2 || call.rows < LEAST * call.threads) return ends;
    for (int64_t from = 0, to; from < call.rows; from = to) {
        int64_t share = (call.rows - from) / (2 * call.threads);
        to = std::min(call.rows, from + std::max(LEAST, (share + 3) / 4 * 4));
        while (to < call.rows && call.places[to] == call.places[to - 1]) to++;
        ends.push_back(to);
    }
    return ends;
}

Call part_of(const Model& model, const Call& call, int64_t from, int64_t to, std::vector<int64_t>& wanted) {
    const int64_t *first = std::lower_bound(call.wanted, call.wanted + call.wanted_count, from),
                  *last = std::lower_bound(first, call.wanted + call.wanted_count, to);
    for (const int64_t* row = first; row < last; row++) wanted.push_back(*row - from);
    Call part = call;
    part.rows = to - from, part.tokens += from, part.positions += from, part.places += from;
    part.logits += (first - call.wanted) * model.head.outputs;
    part.wanted_count = wanted.size(), part.wanted = wanted.data();
    return part;
}

template <class F>
void step(const Model& model, const Call& call, F then) {  // then(b) for every row that is through, by any thread
    std::vector<int64_t> ends = parts(call);
    if ((int64_t)ends.size() < call.threads) {  // few rows, or a long text
        pass(model, call, call.threads);
        return each(call.rows, call.threads, then);
    }
    each(ends.size(), call.threads, [&](int64_t i) {
        int64_t from = i ? ends[i - 1] : 0;
        std::vector<int64_t> wanted;
        pass(model, part_of(model, call, from, ends[i], wanted), 1);
        for (int64_t b = from; b < ends[i]; b++) then(b);
    });
}

}  // namespace

extern "C" void babyllama_step(const Model* model, const Call* call) {
    step(*model, *call, [](int64_t) {});
}

// ── the next token ──────────────────────────────────────────────────────────────────────────────────────────────────
namespace {

// Number i of a stream, as choosing.py has it.
double number(uint64_t begin, int64_t i) {
    uint64_t x = begin + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return ((x ^ x >> 31) >> 32) * 0x1p-32;
}

struct Choices {
    int64_t most, budget, vocabulary;          // tokens at most, nanoseconds, V
    int64_t *tokens, *positions, *counters;    // (B,), what rows feed next, where, and how many they have made
    const float* rules;                        // (B, 7): temperature, top_k, top_p, log min_p, three penalties
    const uint64_t* begins;                    // (B,), of streams of random numbers
    const bool* seen;                          // (B, V), of prompts; null without penalties, as are counts
    float* counts;                             // (B, V), of answers
    const uint8_t* ends;                       // (V,): after such a token somebody looks before more are made
    int64_t* made;                             // (most, B)
};
constexpr int64_t NOT_FINITE = -1;

float highest(const float* scores, int64_t count) {  // not a number if one of them is not
    Floats most = {};
    Ints wrong = {};
    most -= INFINITY;
    int64_t v = 0;
    for (; v + W <= count; v += W) {
        Floats some = load(scores + v);
        most = some > most ? some : most;
        wrong |= some != some;
    }
    float found = -INFINITY;
    bool faulty = false;
    for (int i = 0; i < W; i++) found = std::max(found, most[i]), faulty |= wrong[i] != 0;
    for (; v < count; v++) found = std::max(found, scores[v]), faulty |= scores[v] != scores[v];
    return faulty ? NAN : found;
}

// sampling.py's `choose` for one row, whose logits become scores in their place.
int64_t choose(float* scores, const Choices& given, int64_t b) {
    static thread_local std::vector<float> sorted;
    static thread_local std::vector<double> cumulative;
    const int64_t V = given.vocabulary;
    const float *rule = given.rules + 7 * b, temperature = rule[0];
    if (given.counts) {
        const float* counts = given.counts + b * V;
        const bool* seen = given.seen + b * V;
        for (int64_t v = 0; v < V; v++) {
            if (seen[v] || counts[v] > 0) scores[v] = scores[v] > 0 ? scores[v] / rule[4] : scores[v] * rule[4];
            scores[v] = scores[v] - rule[6] * counts[v] - (counts[v] > 0 ? rule[5] : 0);
        }
    }
    float largest = highest(scores, V);
    if (!(fabsf(largest) < INFINITY)) return NOT_FINITE;
    if (!(temperature > 0)) return std::find(scores, scores + V, largest) - scores;
    for (int64_t v = 0; v < V; v++) scores[v] = (scores[v] - largest) / temperature;
    auto cut = [&](float floor) { for (int64_t v = 0; v < V; v++) if (scores[v] < floor) scores[v] = -INFINITY; };
    if (rule[1] > 0) {
        int64_t kept = std::min((int64_t)rule[1], V);
        sorted.assign(scores, scores + V);
        std::nth_element(sorted.begin(), sorted.begin() + (kept - 1), sorted.end(), std::greater<float>());
        cut(sorted[kept - 1]);
    }
    if (rule[2] < 1) {
        double total = 0, before = 0;
        sorted.clear();
        for (int64_t v = 0; v < V; v++)
            if (scores[v] > -INFINITY) sorted.push_back(scores[v]), total += std::exp((double)scores[v]);
        std::make_heap(sorted.begin(), sorted.end());
        float floor = sorted.front();
        for (auto end = sorted.end(); end != sorted.begin() && (before == 0 || before < rule[2]); end--) {
            floor = sorted.front();
            before += std::exp((double)floor) / total;
            std::pop_heap(sorted.begin(), end);
        }
        cut(floor);
    }
    if (rule[3] > -INFINITY) cut(rule[3]);
    double total = 0;
    cumulative.resize(V);
    for (int64_t v = 0; v < V; v++)
        cumulative[v] = scores[v] > -INFINITY ? total += std::exp((double)scores[v]) : total;
    double wanted = number(given.begins[b], given.counters[b]) * total;
    return std::upper_bound(cumulative.begin(), cumulative.end(), wanted) - cumulative.begin();
}

}  // namespace

// How many tokens every row has made: until one of them may be the end of an answer, or the time is over.
extern "C" int64_t babyllama_steps(const Model* model, const Call* call, const Choices* given) {
    auto began = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < given->most;) {
        std::atomic<bool> ended{false};
        step(*model, *call, [&](int64_t b) {
            int64_t token = choose(call->logits + b * model->head.outputs, *given, b), fed = token < 0 ? 0 : token;
            given->made[i * call->rows + b] = token;
            given->tokens[b] = fed, given->positions[b]++, given->counters[b]++;
            if (given->counts) given->counts[b * given->vocabulary + fed]++;
            if (token < 0 || given->ends[fed]) ended = true;
        });
        auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - began);
        if (++i == given->most || ended || spent.count() > given->budget) return i;
    }
    return 0;
}
