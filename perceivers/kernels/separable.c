/* The separable cross-attention of separable.py for CPUs, forward and backward, in float32 and float64.

   Plain C and threads: no header of Python or PyTorch. Inputs come strip by strip, a strip being inputs that differ in the
   last axis only, FOLD vectors of them at most. With the names of separable.py and of `Tile` in tiles.py:

       raw = sum_a T_a[i_a] + q . u                    S = raw rho (-inf where masked and past the end of a row)
       forward:          A = exp(S - max),             sums over inputs of A, A rho, A rho u
       backward:         graw = sum_a dR_a[i_a] + dU . u,   A = exp(S - lse),   dS = A (graw rho + offset),
                         sums over inputs of dS rho, dS rho u
       backward_inputs:  sums over queries of (dS q + A dU) rho and of dS raw + A graw

   A task is a few queries of one sample against all its inputs, or for backward_inputs a few rows of inputs against all
   queries, so that results depend neither on the number of threads nor on the batch. Sums are taken in lanes and folded into
   double every FOLD additions: errors do not grow with the number of inputs.

   Exponentials are relative to `max`, in powers of 2. It is the largest score so far or lies below it by HEADROOM at most,
   which no float overflows. A strip whose scores could lie further above, by a bound from the largest content and rho of
   the strip, is read once more to find its true maximum; others need no maximum at all.

   The file includes itself once for each instruction set and type.

   Letters: B samples, Q queries, U channels of content, A axes, S the sum of their lengths and U, M inputs. */

#ifndef REAL

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { QUERIES = 16, ROWS = 16, MAX_AXES = 8, MAX_CONTENT = 16, FOLD = 64, HEADROOM = 40 };
enum { FORWARD, BACKWARD, BACKWARD_INPUTS };
enum { SAME, BFLOAT16, FLOAT16 };

typedef void (*Team)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

/* One call. Arrays are contiguous, in the order of their letters; content has strides, in elements. */
typedef struct {
    int64_t samples, queries, content_channels, axes, rows, inputs;
    int64_t lengths[MAX_AXES];
    int64_t content_strides[2 + MAX_AXES];
    int64_t content_type;              /* SAME as REAL, or BFLOAT16, FLOAT16 */
    const void *p, *content, *rho;     /* [B, Q, S]: T_1, ..., T_A, q; [B, U, *axes]; [B, M] */
    const uint8_t *mask;               /* [B, M], 1 where an input may be attended to, or NULL */
    const void *lse, *offset, *grad;   /* backward: [B, Q], [B, Q], [B, Q, S] */
    void *out, *out_lse;               /* [B, Q, S]; forward: [B, Q] */
    void *out_content, *out_rho;       /* backward_inputs: [B, U, M], [B, M] */
    int64_t threads;
    Team team; /* GOMP_parallel, or NULL */
} Call;

typedef int (*Task)(const Call *, int64_t sample, int64_t first, int64_t count);

typedef struct {
    const Call *call;
    Task task;
    int64_t size, step; /* of a sample, in queries or rows; of a task */
    atomic_int_fast64_t next;
    atomic_int failed;
} Queue;

static void *work(void *argument) {
    Queue *queue = argument;
    const int64_t parts = (queue->size + queue->step - 1) / queue->step, tasks = queue->call->samples * parts;
    for (int64_t i; (i = atomic_fetch_add(&queue->next, 1)) < tasks;) {
        const int64_t first = i % parts * queue->step, rest = queue->size - first;
        if (queue->task(queue->call, i / parts, first, rest < queue->step ? rest : queue->step)) atomic_store(&queue->failed, 1);
    }
    return NULL;
}

static void member(void *queue) { work(queue); }

/* Threads live for one call, so a fork in between finds none. If no more can be started, fewer do the work. A team
   that already waits, PyTorch's own, is faster: its threads spin, and new ones would have to share their cores. */
static int run(const Call *call, Task task, int64_t size, int64_t step) {
    Queue queue = {.call = call, .task = task, .size = size, .step = step};
    const int64_t tasks = call->samples * ((size + step - 1) / step);
    const int64_t wanted = call->threads < tasks ? call->threads : tasks;
    if (call->team && wanted > 1) {
        call->team(member, &queue, (unsigned)wanted, 0);
    } else {
        int64_t others = wanted - 1, started = 0;
        pthread_t *threads = others > 0 ? malloc((size_t)others * sizeof *threads) : NULL;
        if (threads)
            while (started < others && !pthread_create(&threads[started], NULL, work, &queue)) started++;
        work(&queue);
        for (int64_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
        free(threads);
    }
    return atomic_load(&queue.failed);
}

#define LOG2_E 1.4426950408889634074 /* exponentials are powers of 2 */
#define LN_2 0.69314718055994530942

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(name) JOIN(name, ISA, REAL)

#define SELF "separable.c"

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#define BLOCK 4 /* queries in registers */
#define PAIR 2  /* of them worked on side by side */
#define BYTES 64
#define ISA avx512
#define SCALE 1 /* rounds and scales by powers of two in one instruction */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
#define REAL float
#include SELF
#define REAL double
#include SELF
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SCALE
#undef ISA
#undef BYTES
#undef BLOCK
#undef PAIR

#define BLOCK 2
#define PAIR 1
#define BYTES 32
#define ISA avx2
#define SCALE 0
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REAL float
#include SELF
#define REAL double
#include SELF
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SCALE
#undef ISA
#undef BYTES
#undef BLOCK
#undef PAIR
#else
#define X86 0
#endif

/* SSE2, NEON, or another 16-byte vector unit. */
#define BLOCK 2
#define PAIR 1
#define BYTES 16
#define ISA baseline
#define SCALE 0
#define REAL float
#include SELF
#define REAL double
#include SELF

/* Which instruction sets this build and this processor have: bit 0 baseline, 1 avx2, 2 avx512. */
int perceivers_instruction_sets(void) {
#if X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return 1 | avx2 << 1 | avx512 << 2;
#else
    return 1;
#endif
}

/* `what` is FORWARD, BACKWARD or BACKWARD_INPUTS. Returns 0, or 1 if memory ran out. */
int perceivers_separable(const Call *call, int what, int is_double, int instruction_set) {
#define TASKS(isa)                                                                               \
    {                                                                                            \
        {forward_##isa##_float, forward_##isa##_double}, {backward_##isa##_float, backward_##isa##_double}, \
            {backward_inputs_##isa##_float, backward_inputs_##isa##_double},                     \
    }
    static const Task tasks[3][3][2] = {
        TASKS(baseline),
#if X86
        TASKS(avx2),
        TASKS(avx512),
#endif
    };
    const int64_t last = call->lengths[call->axes - 1], rows = call->inputs / last;
    const Task task = tasks[instruction_set][what][is_double];
    if (what == BACKWARD_INPUTS) return run(call, task, rows, ROWS);
    /* More queries a task read the inputs less often; fewer, if there are many threads, keep all of them busy. */
    int64_t step = QUERIES;
    while (step > 4 && call->samples * ((call->queries + step - 1) / step) < 4 * call->threads) step /= 2;
    return run(call, task, call->queries, step);
}

/* 2^x, for tests: every float can be tried. */
void perceivers_power(const float *x, float *y, int64_t count, int instruction_set) {
#if X86
    if (instruction_set == 2) powers_avx512_float(x, y, count);
    if (instruction_set == 1) powers_avx2_float(x, y, count);
#endif
    if (instruction_set == 0) powers_baseline_float(x, y, count);
}

#else /* once for each instruction set and type */

#define IS_DOUBLE (sizeof(REAL) == 8)
enum { NAME(LANES) = BYTES / sizeof(REAL), NAME(STRIP) = FOLD * BYTES / sizeof(REAL) };
#define LANES NAME(LANES)
#define STRIP NAME(STRIP)
#define INLINE static inline __attribute__((always_inline))

typedef REAL NAME(Vector) __attribute__((vector_size(BYTES)));
typedef REAL NAME(Unaligned) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#define V NAME(Vector)
typedef __typeof__((V){0} > (V){0}) NAME(Lanes); /* integers as wide as REAL */
#define I NAME(Lanes)
#define LOAD(pointer, j) ((V)((const NAME(Unaligned) *)(pointer))[j])

INLINE V NAME(splat)(REAL x) { return x - (V){0}; }

/* The larger, lane by lane; b if a or b is NaN. */
INLINE V NAME(larger)(V a, V b) {
#if SCALE
    return IS_DOUBLE ? (V)_mm512_max_pd((__m512d)a, (__m512d)b) : (V)_mm512_max_ps((__m512)a, (__m512)b);
#else
    const I first = a > b;
    return (V)(((I)a & first) | ((I)b & ~first));
#endif
}

INLINE V NAME(absolute)(V x) { return (V)((I)x & ~(I)NAME(splat)((REAL)-0.0)); }

INLINE REAL NAME(total)(V x) {
    REAL lanes[LANES];
    memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 8
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

INLINE REAL NAME(largest)(V x) {
    REAL most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Vectors that are worked on side by side, operation by operation: one chain of operations would wait for itself. */
#define EACH _Pragma("GCC unroll 4") for (int k = 0; k < PAIR; k++)

/* 2^x in place, to about one and a half units in the last place; exactly 0 far below the smallest normal number. Where `clamp`
   is 0, x must not be -inf. */
INLINE void NAME(power)(V *x, const int clamp) {
    /* 2^r = 1 + r g(r), |r| <= 1/2: minimax in float32, interpolated at Chebyshev nodes in float64. */
    static const double wide[] = {0.69314718055994530942,   0.2402265069591009822,    0.055504108664821594339,
                                  0.0096181291076068885273, 0.001333355814641693531,  0.00015403530441736050155,
                                  0.000015252733829836118,  1.3215442587921689653e-6, 1.0178062445845773521e-7,
                                  7.0725859492692236999e-9, 4.4549605981865183938e-10};
    static const double narrow[] = {0.6931469776002888, 0.24022242085258502, 0.055507337417524, 0.009671512646232235,
                                    0.0013264727629981564};
    const double *g = IS_DOUBLE ? wide : narrow;
    const int degree = IS_DOUBLE ? 10 : 4;
    V n[PAIR], p[PAIR];
    const REAL lowest = SCALE ? -10000 : IS_DOUBLE ? -1023 : -127; /* becomes zero */
    if (clamp || !SCALE) EACH x[k] = NAME(larger)(NAME(splat)(lowest), x[k]); /* NaN stays */
#if SCALE
    EACH n[k] = IS_DOUBLE ? (V)_mm512_roundscale_pd((__m512d)x[k], 8) : (V)_mm512_roundscale_ps((__m512)x[k], 8);
#else
    const REAL magic = IS_DOUBLE ? (REAL)0x1.8p52 : (REAL)0x1.8p23;
    V shifted[PAIR];
    EACH shifted[k] = x[k] + magic;
    EACH n[k] = shifted[k] - magic;
#endif
    EACH x[k] = x[k] - n[k];
    EACH p[k] = x[k] * (REAL)g[degree] + (REAL)g[degree - 1];
#pragma GCC unroll 16
    for (int i = degree - 2; i >= 0; i--) EACH p[k] = p[k] * x[k] + (REAL)g[i];
    EACH p[k] = p[k] * x[k] + (REAL)1;
#if SCALE
    EACH x[k] = IS_DOUBLE ? (V)_mm512_scalef_pd((__m512d)p[k], (__m512d)n[k]) : (V)_mm512_scalef_ps((__m512)p[k], (__m512)n[k]);
#else
    const int bias = IS_DOUBLE ? 1023 : 127, shift = IS_DOUBLE ? 52 : 23;
    EACH x[k] = p[k] * (V)(((I)shifted[k] - (I)NAME(splat)(magic) + bias) << shift);
#endif
}

static void __attribute__((unused)) NAME(powers)(const REAL *x, REAL *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        V values[PAIR];
        EACH values[k] = NAME(splat)(x[i]);
        NAME(power)(values, 1);
        y[i] = values[0][0];
    }
}

/* What a task holds: a strip of inputs, values of its queries, and results. */
typedef struct {
    int64_t count, vectors, plain;   /* of the strip: inputs, vectors, vectors with nothing masked */
    const REAL *u[MAX_CONTENT], *rho; /* of the strip: as given, or copies padded to whole vectors */
    REAL most_u[MAX_CONTENT], most_rho, least_rho;
    V *copy_u, *copy_rho, *rho2, *off; /* [U][FOLD], [FOLD], [FOLD]: rho log2(e), [FOLD]: 0 or -inf */
    int64_t position[MAX_AXES];      /* of the strip, on each axis but the last */
    int64_t padded;                  /* inputs of a row of the last axis, in whole vectors */
    REAL *last, *grad_last;          /* T and dT of the last axis, [queries][padded] */
    V *sums;                         /* results of the last axis, [QUERIES][padded] */
    double *folded, *outer;          /* results: [QUERIES][padded] of the last axis, [QUERIES][L - last] of the others */
    V lane_total[QUERIES], lane_content[QUERIES][MAX_CONTENT];
    double total[QUERIES][LANES], content[QUERIES][MAX_CONTENT][LANES];
    REAL max[QUERIES], most_last[QUERIES];
} NAME(State);
#define State NAME(State)

INLINE void *NAME(take)(char **memory, int64_t bytes) {
    void *start = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return start;
}

/* Takes memory for a task of `count` queries; `results` says whether it needs sums of its own. */
static void *NAME(prepare)(const Call *call, State *s, int64_t query, int64_t count, int backward, int results) {
    const int64_t last = call->lengths[call->axes - 1], U = call->content_channels, others = call->rows - U - last;
    s->padded = (last + LANES - 1) / LANES * LANES;
    const int64_t row = s->padded * (int64_t)sizeof(REAL), strip = FOLD * BYTES;
    const int64_t sums = results * (count + BLOCK - 1) * row; /* whole blocks of queries are added up */
    const int64_t bytes = strip * (U + 3) + sums + count * (row * (1 + backward) + results * 8 * (s->padded + others)) + 64 * 12;
    char *block = malloc((size_t)bytes);
    if (!block) return NULL;
    memset(block, 0, (size_t)bytes);
    char *memory = (char *)(((uintptr_t)block + 63) / 64 * 64);
    s->copy_u = NAME(take)(&memory, strip * U);
    s->copy_rho = NAME(take)(&memory, strip);
    s->rho2 = NAME(take)(&memory, strip);
    s->off = NAME(take)(&memory, strip);
    s->last = NAME(take)(&memory, row * count);
    s->grad_last = NAME(take)(&memory, backward * row * count);
    for (int64_t i = 0; i < count; i++) { /* aligned, and whole vectors stay inside */
        const int64_t from = (query + i) * call->rows + others;
        memcpy(s->last + i * s->padded, (const REAL *)call->p + from, (size_t)last * sizeof(REAL));
        if (backward) memcpy(s->grad_last + i * s->padded, (const REAL *)call->grad + from, (size_t)last * sizeof(REAL));
    }
    if (!results) return block;
    s->sums = NAME(take)(&memory, sums);
    s->folded = NAME(take)(&memory, count * 8 * s->padded);
    s->outer = NAME(take)(&memory, count * 8 * others);
    memset(s->total, 0, sizeof s->total);
    memset(s->content, 0, sizeof s->content);
    memset(s->lane_total, 0, sizeof s->lane_total);
    memset(s->lane_content, 0, sizeof s->lane_content);
    for (int64_t i = 0; i < count; i++) {
        s->max[i] = s->most_last[i] = (REAL)-INFINITY;
        for (int64_t j = 0; j < last; j++)
            if (s->last[i * s->padded + j] > s->most_last[i]) s->most_last[i] = s->last[i * s->padded + j];
    }
    return block;
}

INLINE REAL NAME(widened)(const Call *call, int64_t element) {
    const uint16_t half = ((const uint16_t *)call->content)[element];
    uint32_t bits = (uint32_t)half << 16;
    float value;
    if (call->content_type == FLOAT16) {
        bits = (uint32_t)(half & 0x7fff) << 13;
        memcpy(&value, &bits, 4);
        value *= 0x1p112f; /* the difference of the exponents' offsets; right for subnormal numbers too */
        if (bits >= 0x7c00u << 13) bits |= 0x7f800000u; /* infinite or NaN */
        else memcpy(&bits, &value, 4);
        bits |= (uint32_t)(half & 0x8000) << 16;
    }
    memcpy(&value, &bits, 4);
    return (REAL)value;
}

/* Reads the inputs of row `row` from the j-th on; returns 0 where all of them are masked. */
static int NAME(read)(const Call *call, State *s, int64_t sample, int64_t row, int64_t j) {
    const int64_t A = call->axes, U = call->content_channels, last = call->lengths[A - 1];
    const int64_t *stride = call->content_strides;
    s->count = last - j < STRIP ? last - j : STRIP;
    s->vectors = (s->count + LANES - 1) / LANES;
    const int64_t input = sample * call->inputs + row * last + j, padded = s->vectors * LANES;
    const uint8_t *mask = call->mask ? call->mask + input : NULL;
    if (mask && !memchr(mask, 1, (size_t)s->count)) return 0;
    if (mask && !memchr(mask, 0, (size_t)s->count)) mask = NULL;
    s->plain = mask ? 0 : s->count / LANES;

    int64_t start = sample * stride[0] + j * stride[1 + A];
    for (int64_t a = A - 2, rest = row; a >= 0; a--) {
        s->position[a] = rest % call->lengths[a];
        rest /= call->lengths[a];
        start += s->position[a] * stride[2 + a];
    }
    const int whole = s->plain == s->vectors; /* then vectors are read from where the caller has them */
    for (int64_t c = 0; c < U; c++, start += stride[1]) {
        const REAL *from = (const REAL *)call->content + start;
        REAL *to = (REAL *)s->copy_u + c * STRIP;
        s->u[c] = to;
        if (call->content_type != SAME)
            for (int64_t k = 0; k < s->count; k++) to[k] = NAME(widened)(call, start + k * stride[1 + A]);
        else if (stride[1 + A] == 1 && whole)
            s->u[c] = from;
        else
            for (int64_t k = 0; k < s->count; k++) to[k] = from[k * stride[1 + A]];
        if (whole) continue;
        if (mask)
            for (int64_t k = 0; k < s->count; k++) to[k] = mask[k] ? to[k] : 0; /* NaN may lie there */
        for (int64_t k = s->count; k < padded; k++) to[k] = 0;
    }
    s->rho = (const REAL *)call->rho + input;
    if (!whole) {
        REAL *to = (REAL *)s->copy_rho, *off = (REAL *)s->off;
        memcpy(to, s->rho, (size_t)s->count * sizeof(REAL));
        for (int64_t k = s->count; k < padded; k++) to[k] = to[0];
        for (int64_t k = 0; k < padded; k++) off[k] = k < s->count && (!mask || mask[k]) ? (REAL)0 : (REAL)-INFINITY;
        s->rho = to;
    }
    V most = LOAD(s->rho, 0), least = -most;
    for (int64_t k = 0; k < s->vectors; k++) {
        const V rho = LOAD(s->rho, k);
        most = NAME(larger)(most, rho), least = NAME(larger)(least, -rho);
        s->rho2[k] = rho * (REAL)LOG2_E;
    }
    s->most_rho = NAME(largest)(most), s->least_rho = -NAME(largest)(least);
    for (int64_t c = 0; c < U; c++) {
        V most_u = (V){0};
        for (int64_t k = 0; k < s->vectors; k++) most_u = NAME(larger)(NAME(absolute)(LOAD(s->u[c], k)), most_u);
        s->most_u[c] = NAME(largest)(most_u);
    }
    return 1;
}

/* The part of p or of its gradient that belongs to the content. */
INLINE const REAL *NAME(of_content)(const Call *call, const void *p, int64_t query) {
    return (const REAL *)p + (query + 1) * call->rows - call->content_channels;
}

/* Sum over the outer axes of their tables at a strip: what its scores have in common. */
INLINE REAL NAME(at_row)(const Call *call, const State *s, const void *tables, int64_t query) {
    const REAL *table = (const REAL *)tables + query * call->rows;
    REAL sum = 0;
    for (int64_t a = 0; a < call->axes - 1; table += call->lengths[a++]) sum += table[s->position[a]];
    return sum;
}

INLINE void NAME(add_at_row)(const Call *call, const State *s, double *outer, double value) {
    for (int64_t a = 0; a < call->axes - 1; outer += call->lengths[a++]) outer[s->position[a]] += value;
}

static void NAME(fold)(State *s, int64_t count) {
    REAL *sums = (REAL *)s->sums;
    for (int64_t j = 0; j < count * s->padded; j++) s->folded[j] += (double)sums[j], sums[j] = 0;
}

INLINE void NAME(fold_lane)(double *folded, V *sum) {
    for (int lane = 0; lane < LANES; lane++) folded[lane] += (double)(*sum)[lane];
    *sum = (V){0};
}

static void NAME(fold_lanes)(const Call *call, State *s, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        NAME(fold_lane)(s->total[i], &s->lane_total[i]);
        for (int64_t c = 0; c < call->content_channels; c++) NAME(fold_lane)(s->content[i][c], &s->lane_content[i][c]);
    }
}

static double NAME(sum_of_lanes)(const double *folded) {
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += folded[lane];
    return sum;
}

static void NAME(write)(const Call *call, const State *s, int64_t query, int64_t count, int divide) {
    const int64_t U = call->content_channels, last = call->lengths[call->axes - 1], others = call->rows - U - last;
    for (int64_t i = 0; i < count; i++, query++) {
        const double total = NAME(sum_of_lanes)(s->total[i]);
        const double factor = !divide ? 1 : total == 0 ? 0 : 1 / total; /* NaN stays NaN */
        REAL *out = (REAL *)call->out + query * call->rows;
        for (int64_t j = 0; j < others; j++) *out++ = (REAL)(s->outer[i * others + j] * factor);
        for (int64_t j = 0; j < last; j++) *out++ = (REAL)(s->folded[i * s->padded + j] * factor);
        for (int64_t c = 0; c < U; c++) *out++ = (REAL)(NAME(sum_of_lanes)(s->content[i][c]) * factor);
        if (divide)
            ((REAL *)call->out_lse)[query] =
                (REAL)(total == 0 ? -INFINITY : log(total) + (double)s->max[i] * LN_2);
    }
}

/* Raises the maximum of query i of the task where the strip needs it. */
static void NAME(raise)(const Call *call, State *s, int64_t query, int64_t i, int64_t j0, REAL base) {
    const int64_t U = call->content_channels, others = call->rows - U - call->lengths[call->axes - 1];
    const REAL *q = NAME(of_content)(call, call->p, query), *last = s->last + i * s->padded + j0;
    V most = NAME(splat)((REAL)-INFINITY);
    for (int64_t j = 0; j < s->vectors; j++) {
        V raw = LOAD(last, j) + base;
        for (int64_t c = 0; c < U; c++) raw = LOAD(s->u[c], j) * q[c] + raw;
        V score = raw * s->rho2[j];
        if (j >= s->plain) score += s->off[j];
        most = NAME(larger)(score, most);
    }
    const REAL max = NAME(largest)(most), old = s->max[i];
    if (!(max > old + HEADROOM / 2)) return; /* from -inf every score rises */
    const double factor = old == (REAL)-INFINITY ? 0 : exp2((double)old - (double)max);
    s->max[i] = max;
    for (int lane = 0; lane < LANES; lane++) s->total[i][lane] *= factor;
    s->lane_total[i] *= (REAL)factor;
    for (int64_t c = 0; c < U; c++) {
        for (int lane = 0; lane < LANES; lane++) s->content[i][c][lane] *= factor;
        s->lane_content[i][c] *= (REAL)factor;
    }
    for (int64_t j = 0; j < others; j++) s->outer[i * others + j] *= factor;
    for (int64_t j = 0; j < s->padded; j++) s->folded[i * s->padded + j] *= factor;
    for (int64_t j = 0; j < s->padded / LANES; j++) s->sums[i * s->padded / LANES + j] *= (REAL)factor;
}

/* BLOCK queries of the task, from the i0-th on, against the strip, forward. U is a constant where this is inlined; where
   fewer than BLOCK queries are left, `at` repeats the last one, whose results are then dropped. */
INLINE void NAME(forward_block)(const Call *call, State *s, int64_t first, int64_t count, int64_t i0, int64_t j0,
                                const int64_t U) {
    const int64_t others = call->rows - U - call->lengths[call->axes - 1];
    V row[BLOCK], total[BLOCK], content[BLOCK][MAX_CONTENT];
    REAL base[BLOCK], max[BLOCK], q[BLOCK][MAX_CONTENT];
    const REAL *last[BLOCK];
    V *sums[BLOCK];
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        const int64_t at = i0 + i < count ? i0 + i : count - 1;
        base[i] = NAME(at_row)(call, s, call->p, first + at);
        last[i] = s->last + at * s->padded + j0;
        REAL bound = base[i] + s->most_last[at];
        for (int64_t c = 0; c < U; c++) {
            q[i][c] = NAME(of_content)(call, call->p, first + at)[c];
            bound += (q[i][c] < 0 ? -q[i][c] : q[i][c]) * s->most_u[c];
        }
        bound *= (bound < 0 ? s->least_rho : s->most_rho) * (REAL)LOG2_E;
        if (!(bound <= s->max[at] + HEADROOM)) NAME(raise)(call, s, first + at, at, j0, base[i]);
        max[i] = s->max[at] == (REAL)-INFINITY ? 0 : s->max[at];
        sums[i] = s->sums + ((i0 + i) * s->padded + j0) / LANES;
        row[i] = (V){0};
        total[i] = s->lane_total[at];
        for (int64_t c = 0; c < U; c++) content[i][c] = s->lane_content[at][c];
    }
#define STEP(masked)                                                                     \
    {                                                                                    \
        const V rho = LOAD(s->rho, j), rho2 = s->rho2[j];                                \
        V u[MAX_CONTENT];                                                                \
        for (int64_t c = 0; c < U; c++) u[c] = LOAD(s->u[c], j);                         \
        _Pragma("GCC unroll 4") for (int i = 0; i < BLOCK; i += PAIR) {                  \
            V a[PAIR], weight[PAIR];                                                     \
            EACH a[k] = LOAD(last[i + k], j) + base[i + k];                              \
            for (int64_t c = 0; c < U; c++) EACH a[k] = u[c] * q[i + k][c] + a[k];       \
            EACH a[k] = a[k] * rho2 - max[i + k];                                        \
            if (masked) EACH a[k] += s->off[j];                                          \
            NAME(power)(a, masked);                                                      \
            EACH weight[k] = a[k] * rho;                                                 \
            EACH total[i + k] += a[k];                                                   \
            EACH row[i + k] += weight[k];                                                \
            EACH sums[i + k][j] += weight[k];                                            \
            for (int64_t c = 0; c < U; c++) EACH content[i + k][c] = weight[k] * u[c] + content[i + k][c]; \
        }                                                                                \
    }
    for (int64_t j = 0; j < s->plain; j++) STEP(0)
    for (int64_t j = s->plain; j < s->vectors; j++) STEP(1)
#undef STEP
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        if (i0 + i >= count) break;
        s->lane_total[i0 + i] = total[i];
        for (int64_t c = 0; c < U; c++) s->lane_content[i0 + i][c] = content[i][c];
        NAME(add_at_row)(call, s, s->outer + (i0 + i) * others, (double)NAME(total)(row[i]));
    }
}

/* The same backward. */
INLINE void NAME(backward_block)(const Call *call, State *s, int64_t first, int64_t count, int64_t i0, int64_t j0,
                                 const int64_t U) {
    const int64_t others = call->rows - U - call->lengths[call->axes - 1];
    V row[BLOCK], content[BLOCK][MAX_CONTENT];
    REAL base[BLOCK], grad_base[BLOCK], lse[BLOCK], offset[BLOCK], q[BLOCK][MAX_CONTENT], grad_q[BLOCK][MAX_CONTENT];
    const REAL *last[BLOCK], *grad_last[BLOCK];
    V *sums[BLOCK];
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        const int64_t at = i0 + i < count ? i0 + i : count - 1, query = first + at;
        base[i] = NAME(at_row)(call, s, call->p, query);
        grad_base[i] = NAME(at_row)(call, s, call->grad, query);
        last[i] = s->last + at * s->padded + j0;
        grad_last[i] = s->grad_last + at * s->padded + j0;
        lse[i] = ((const REAL *)call->lse)[query] * (REAL)LOG2_E;
        if (lse[i] == (REAL)-INFINITY) lse[i] = 0;
        offset[i] = ((const REAL *)call->offset)[query];
        sums[i] = s->sums + ((i0 + i) * s->padded + j0) / LANES;
        row[i] = (V){0};
        for (int64_t c = 0; c < U; c++) {
            q[i][c] = NAME(of_content)(call, call->p, query)[c];
            grad_q[i][c] = NAME(of_content)(call, call->grad, query)[c];
            content[i][c] = s->lane_content[at][c];
        }
    }
#define STEP(masked)                                                                     \
    {                                                                                    \
        const V rho = LOAD(s->rho, j), rho2 = s->rho2[j];                                \
        V u[MAX_CONTENT];                                                                \
        for (int64_t c = 0; c < U; c++) u[c] = LOAD(s->u[c], j);                         \
        _Pragma("GCC unroll 4") for (int i = 0; i < BLOCK; i += PAIR) {                  \
            V a[PAIR], ds[PAIR];                                                         \
            EACH a[k] = LOAD(last[i + k], j) + base[i + k];                              \
            for (int64_t c = 0; c < U; c++) EACH a[k] = u[c] * q[i + k][c] + a[k];       \
            EACH a[k] = a[k] * rho2 - lse[i + k];                                        \
            if (masked) EACH a[k] += s->off[j];                                          \
            NAME(power)(a, masked);                                                      \
            EACH ds[k] = LOAD(grad_last[i + k], j) + grad_base[i + k];                   \
            for (int64_t c = 0; c < U; c++) EACH ds[k] = u[c] * grad_q[i + k][c] + ds[k]; \
            EACH ds[k] = (ds[k] * rho + offset[i + k]) * rho;                            \
            EACH ds[k] *= a[k];                                                          \
            EACH row[i + k] += ds[k];                                                    \
            EACH sums[i + k][j] += ds[k];                                                \
            for (int64_t c = 0; c < U; c++) EACH content[i + k][c] = ds[k] * u[c] + content[i + k][c]; \
        }                                                                                \
    }
    for (int64_t j = 0; j < s->plain; j++) STEP(0)
    for (int64_t j = s->plain; j < s->vectors; j++) STEP(1)
#undef STEP
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        if (i0 + i >= count) break;
        for (int64_t c = 0; c < U; c++) s->lane_content[i0 + i][c] = content[i][c];
        NAME(add_at_row)(call, s, s->outer + (i0 + i) * others, (double)NAME(total)(row[i]));
    }
}

/* Calls a function with a constant for its last argument where that is common. */
#define FOR_CONTENT(function, ...)                         \
    switch (call->content_channels) {                      \
        case 1: NAME(function)(__VA_ARGS__, 1); break;     \
        case 2: NAME(function)(__VA_ARGS__, 2); break;     \
        case 3: NAME(function)(__VA_ARGS__, 3); break;     \
        default: NAME(function)(__VA_ARGS__, call->content_channels); \
    }

INLINE int NAME(each_strip)(const Call *call, int64_t sample, int64_t first, int64_t count, const int backward) {
    State state, *s = &state;
    const int64_t query = sample * call->queries + first, last = call->lengths[call->axes - 1], rows = call->inputs / last;
    void *memory = NAME(prepare)(call, s, query, count, backward, 1);
    if (!memory) return 1;
    int64_t additions = 0;
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < last; j += STRIP) {
            if (!NAME(read)(call, s, sample, row, j)) continue;
            if ((additions += s->vectors) > FOLD) NAME(fold_lanes)(call, s, count), additions = s->vectors;
            for (int64_t i = 0; i < count; i += BLOCK)
                if (backward)
                    FOR_CONTENT(backward_block, call, s, query, count, i, j)
                else
                    FOR_CONTENT(forward_block, call, s, query, count, i, j)
        }
        if (row % FOLD == FOLD - 1) NAME(fold)(s, count);
    }
    NAME(fold_lanes)(call, s, count);
    NAME(fold)(s, count);
    NAME(write)(call, s, query, count, !backward);
    free(memory);
    return 0;
}

static int NAME(forward)(const Call *call, int64_t sample, int64_t first, int64_t count) {
    return NAME(each_strip)(call, sample, first, count, 0);
}

static int NAME(backward)(const Call *call, int64_t sample, int64_t first, int64_t count) {
    return NAME(each_strip)(call, sample, first, count, 1);
}

/* All queries of a sample against the strip, for the gradients of its inputs: [U][FOLD] and [FOLD]. */
INLINE void NAME(inputs_block)(const Call *call, State *s, int64_t first, int64_t j0, double *out_u, double *out_rho,
                               const int64_t U) {
    for (int64_t i0 = 0; i0 < call->queries; i0 += FOLD) {
        REAL base[FOLD], grad_base[FOLD], lse[FOLD], offset[FOLD];
        int64_t count = call->queries - i0 < FOLD ? call->queries - i0 : FOLD, at[FOLD];
        for (int64_t i = 0; i < count || i % PAIR; i++) { /* the last one is repeated to whole pairs, with weights of zero */
            at[i] = i < count ? i0 + i : i0 + count - 1;
            const int64_t query = first + at[i];
            base[i] = NAME(at_row)(call, s, call->p, query);
            grad_base[i] = NAME(at_row)(call, s, call->grad, query);
            lse[i] = ((const REAL *)call->lse)[query] * (REAL)LOG2_E;
            if (lse[i] == (REAL)-INFINITY) lse[i] = 0;
            if (i >= count) lse[i] = (REAL)INFINITY;
            offset[i] = ((const REAL *)call->offset)[query];
        }
        for (int64_t j = 0; j < s->vectors; j++) {
            const V rho = LOAD(s->rho, j), rho2 = s->rho2[j];
            V u[MAX_CONTENT], sum_u[MAX_CONTENT], sum_rho = (V){0};
            for (int64_t c = 0; c < U; c++) u[c] = LOAD(s->u[c], j), sum_u[c] = (V){0};
            for (int64_t i = 0; i < count; i += PAIR) {
                const REAL *q[PAIR], *grad_q[PAIR];
                V raw[PAIR], graw[PAIR], a[PAIR], ds[PAIR];
                EACH q[k] = NAME(of_content)(call, call->p, first + at[i + k]);
                EACH grad_q[k] = NAME(of_content)(call, call->grad, first + at[i + k]);
                EACH raw[k] = LOAD(s->last + at[i + k] * s->padded + j0, j) + base[i + k];
                EACH graw[k] = LOAD(s->grad_last + at[i + k] * s->padded + j0, j) + grad_base[i + k];
                for (int64_t c = 0; c < U; c++) {
                    EACH raw[k] = u[c] * q[k][c] + raw[k];
                    EACH graw[k] = u[c] * grad_q[k][c] + graw[k];
                }
                EACH a[k] = raw[k] * rho2 - lse[i + k];
                if (j >= s->plain) EACH a[k] += s->off[j];
                NAME(power)(a, 1);
                EACH ds[k] = a[k] * (graw[k] * rho + offset[i + k]);
                EACH sum_rho += ds[k] * raw[k] + a[k] * graw[k];
                for (int64_t c = 0; c < U; c++) EACH sum_u[c] = ds[k] * q[k][c] + (a[k] * grad_q[k][c] + sum_u[c]);
            }
            for (int lane = 0; lane < LANES; lane++) {
                out_rho[j * LANES + lane] += (double)sum_rho[lane];
                for (int64_t c = 0; c < U; c++) out_u[c * STRIP + j * LANES + lane] += (double)(sum_u[c][lane] * rho[lane]);
            }
        }
    }
}

static int NAME(backward_inputs)(const Call *call, int64_t sample, int64_t row, int64_t count) {
    State state, *s = &state;
    const int64_t U = call->content_channels, last = call->lengths[call->axes - 1], query = sample * call->queries;
    void *memory = NAME(prepare)(call, s, query, call->queries, 1, 0);
    double *sums = malloc((size_t)((U + 1) * STRIP) * sizeof(double));
    if (!memory || !sums) return free(memory), free(sums), 1;
    for (const int64_t end = row + count; row < end; row++)
        for (int64_t j = 0; j < last; j += STRIP) {
            memset(sums, 0, (size_t)((U + 1) * STRIP) * sizeof(double));
            const int64_t here = last - j < STRIP ? last - j : STRIP, input = row * last + j;
            if (NAME(read)(call, s, sample, row, j)) FOR_CONTENT(inputs_block, call, s, query, j, sums, sums + U * STRIP)
            for (int64_t k = 0; k < here; k++) {
                ((REAL *)call->out_rho)[sample * call->inputs + input + k] = (REAL)sums[U * STRIP + k];
                for (int64_t c = 0; c < U; c++)
                    ((REAL *)call->out_content)[(sample * U + c) * call->inputs + input + k] = (REAL)sums[c * STRIP + k];
            }
        }
    free(memory);
    free(sums);
    return 0;
}

#undef FOR_CONTENT
#undef EACH
#undef State
#undef V
#undef I
#undef LOAD
#undef LANES
#undef STRIP
#undef INLINE
#undef IS_DOUBLE
#undef REAL

#endif
