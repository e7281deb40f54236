/* The separable cross-attention of separable.py for CPUs, forward and backward, in float32 and float64.

   Plain C and threads: no header of Python or PyTorch. A task is a few queries of one sample against all its inputs, so that
   results depend neither on the number of threads nor on the batch. Inputs come row by row, a row being those that differ in
   the last axis only:

       S = (sum_a T_a[i_a] + q . u) rho + off        off: 0, or -inf where masked and behind the end of a row
       forward:   A = exp(S - max),   sums of A, A rho, A rho u
       backward:  A = exp(S - lse),   dS = A ((sum_a dR_a[i_a] + dU . u) rho + offset),   sums of dS rho, dS rho u

   Sums are taken in lanes and folded into double every FOLD additions or so, at the end of a row at the latest: errors do not
   grow with the number of inputs. The running maximum rises only by more than MARGIN, so that results are rarely rescaled.

   The file includes itself once for each instruction set and type: the same source, vectors of 64 bytes everywhere, which
   compilers split where registers are narrower.

   Letters: B samples, Q queries, U channels of content, A axes, L sum of their lengths, M inputs. */

#ifndef REAL

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { QUERIES = 8, BLOCK = 4, MAX_AXES = 8, MAX_CONTENT = 16, FOLD = 64, MARGIN = 16 };

/* One call. Arrays are contiguous, in the order of their letters; content has strides, in elements. */
typedef struct {
    int64_t samples, queries, content_channels, axes, total_length, inputs;
    int64_t lengths[MAX_AXES];
    int64_t content_strides[2 + MAX_AXES];
    const void *q, *t, *content, *rho; /* [B, Q, U], [B, Q, L], [B, U, *axes], [B, M] */
    const uint8_t *mask;               /* [B, M], 1 where an input may be attended, or NULL */
    const void *lse, *offset;          /* backward: [B, Q] */
    const void *grad_u, *grad_r;       /* backward: [B, Q, U], [B, Q, L] */
    void *out_u, *out_t, *out_lse;     /* [B, Q, U], [B, Q, L], [B, Q] (forward only) */
    int64_t threads;
} Call;

typedef int (*Task)(const Call *, int64_t sample, int64_t first_query);

typedef struct {
    const Call *call;
    Task task;
    atomic_int_fast64_t next;
    atomic_int failed;
} Queue;

static void *work(void *argument) {
    Queue *queue = argument;
    const int64_t tiles = (queue->call->queries + QUERIES - 1) / QUERIES, tasks = queue->call->samples * tiles;
    for (int64_t i; (i = atomic_fetch_add(&queue->next, 1)) < tasks;)
        if (queue->task(queue->call, i / tiles, i % tiles * QUERIES)) atomic_store(&queue->failed, 1);
    return NULL;
}

/* Threads live for one call, so that a fork in between finds none. Where no more can be started, fewer do the work. */
static int run(const Call *call, Task task) {
    Queue queue = {.call = call, .task = task};
    const int64_t tasks = call->samples * ((call->queries + QUERIES - 1) / QUERIES);
    int64_t others = (call->threads < tasks ? call->threads : tasks) - 1, started = 0;
    pthread_t *threads = others > 0 ? malloc((size_t)others * sizeof *threads) : NULL;
    if (threads)
        while (started < others && !pthread_create(&threads[started], NULL, work, &queue)) started++;
    work(&queue);
    for (int64_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    free(threads);
    return atomic_load(&queue.failed);
}

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(name) JOIN(name, ISA, REAL)

#define SELF "separable.c"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#define ISA avx512
#define REAL float
#include SELF
#define REAL double
#include SELF
#undef ISA
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define ISA avx2
#define REAL float
#include SELF
#define REAL double
#include SELF
#undef ISA
#pragma GCC pop_options
#else
#define X86 0
#endif

#define ISA baseline
#define REAL float
#include SELF
#define REAL double
#include SELF
#undef ISA

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

/* Returns 0, or 1 where memory ran out. */
int perceivers_separable(const Call *call, int backward, int is_double, int instruction_set) {
    static const Task tasks[3][2][2] = {
        {{forward_baseline_float, forward_baseline_double}, {backward_baseline_float, backward_baseline_double}},
#if X86
        {{forward_avx2_float, forward_avx2_double}, {backward_avx2_float, backward_avx2_double}},
        {{forward_avx512_float, forward_avx512_double}, {backward_avx512_float, backward_avx512_double}},
#endif
    };
    return run(call, tasks[instruction_set][backward][is_double]);
}

#else /* once for each instruction set and type */

#define IS_DOUBLE (sizeof(REAL) == 8)
enum { NAME(LANES) = 64 / sizeof(REAL) };
#define LANES NAME(LANES)
#define INLINE static inline __attribute__((always_inline))

typedef REAL NAME(Vector) __attribute__((vector_size(64)));
#define V NAME(Vector)
typedef __typeof__((V){0} > (V){0}) NAME(Lanes); /* integers as wide as REAL */
#define I NAME(Lanes)

INLINE V NAME(splat)(REAL x) { return x - (V){0}; }

/* The larger, lane by lane; b where a is NaN, NaN where b is. */
INLINE V NAME(larger)(V a, V b) {
    const I first = a > b;
    return (V)(((I)a & first) | ((I)b & ~first));
}

INLINE double NAME(total)(V x) {
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += (double)x[i];
    return sum;
}

/* e^x to about one unit in the last place; exactly 0 below the smallest normal number, and for -inf. */
INLINE V NAME(exponential)(V x) {
    /* 2^n e^r with |r| <= log(2) / 2; (e^r - 1 - r) / r^2 interpolated at Chebyshev nodes in 40 digits. */
    static const double wide[] = {0.50000000000000010221,   0.16666666666666667453,   0.041666666666624127873,
                                  0.0083333333333300618325, 0.0013888888917213716901, 0.00019841269863053616878,
                                  2.4801521295954375131e-5, 2.7557268459997064772e-6, 2.7620088445409748161e-7,
                                  2.5100385495510319078e-8};
    static const double narrow[] = {0.5, 0.16666576989698775683, 0.041666554617204574203, 0.0083631790527225773704,
                                    0.0013926183587713494542};
    const double *c = IS_DOUBLE ? wide : narrow;
    const int degree = IS_DOUBLE ? 9 : 4;
    const REAL magic = IS_DOUBLE ? (REAL)0x1.8p52 : (REAL)0x1.8p23, lowest = IS_DOUBLE ? (REAL)-709.1 : (REAL)-88.03;
    const REAL high = IS_DOUBLE ? (REAL)0x1.62e42fee00000p-1 : (REAL)0x1.62e4p-1;
    const REAL low = IS_DOUBLE ? (REAL)0x1.a39ef35793c76p-33 : (REAL)0x1.7f7d1cf79abcap-20;
    x = NAME(larger)(NAME(splat)(lowest), x); /* NaN stays */
    V shifted = x * (REAL)1.442695040888963407359924681 + magic;
    V n = shifted - magic;
    V r = x - n * high - n * low;
    V p = NAME(splat)((REAL)c[degree]);
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 0; i--) p = p * r + (REAL)c[i];
    p = p * r * r + r + (REAL)1;
    const I exponent = (I)shifted - (I)NAME(splat)(magic) + (IS_DOUBLE ? 1023 : 127);
    return p * (V)(exponent << (IS_DOUBLE ? 52 : 23));
}

/* What a task holds: its queries' numbers, a row of inputs, and results. Rows are padded to whole vectors. */
typedef struct {
    int64_t padded, vectors;
    V *u, *rho, *off, *scores;       /* [U][vectors], [vectors], [vectors], [BLOCK][vectors] */
    V *last, *grad_last, *sums;      /* of the last axis: T, dR, results; [QUERIES][vectors] */
    double *folded, *outer;          /* results: [QUERIES][padded] of the last axis, [QUERIES][L - last] of the others */
    double total[QUERIES], content[QUERIES][MAX_CONTENT];
    V lane_total[QUERIES], lane_content[QUERIES][MAX_CONTENT];
    REAL max[QUERIES], q[QUERIES][MAX_CONTENT], grad_q[QUERIES][MAX_CONTENT];
} NAME(State);
#define State NAME(State)

INLINE void *NAME(take)(char **memory, int64_t bytes) {
    void *start = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return start;
}

static void *NAME(prepare)(const Call *call, State *s, int64_t sample, int64_t first, int backward) {
    const int64_t last = call->lengths[call->axes - 1], others = call->total_length - last, U = call->content_channels;
    s->vectors = (last + LANES - 1) / LANES;
    s->padded = s->vectors * LANES;
    const int64_t row = s->padded * (int64_t)sizeof(REAL);
    const int64_t bytes = row * (U + 2 + BLOCK + 3 * QUERIES) + QUERIES * 8 * (s->padded + others) + 64 * 16;
    char *block = malloc((size_t)bytes);
    if (!block) return NULL;
    memset(block, 0, (size_t)bytes);
    char *memory = (char *)(((uintptr_t)block + 63) / 64 * 64);
    s->u = NAME(take)(&memory, row * U);
    s->rho = NAME(take)(&memory, row);
    s->off = NAME(take)(&memory, row);
    s->scores = NAME(take)(&memory, row * BLOCK);
    s->last = NAME(take)(&memory, row * QUERIES);
    s->grad_last = NAME(take)(&memory, row * QUERIES);
    s->sums = NAME(take)(&memory, row * QUERIES);
    s->folded = NAME(take)(&memory, QUERIES * 8 * s->padded);
    s->outer = NAME(take)(&memory, QUERIES * 8 * others);
    memset(s->total, 0, sizeof s->total);
    memset(s->content, 0, sizeof s->content);
    memset(s->lane_total, 0, sizeof s->lane_total);
    memset(s->lane_content, 0, sizeof s->lane_content);
    memset(s->q, 0, sizeof s->q);
    memset(s->grad_q, 0, sizeof s->grad_q);
    for (int i = 0; i < QUERIES; i++) {
        s->max[i] = (REAL)-INFINITY;
        if (first + i >= call->queries) continue;
        const int64_t query = sample * call->queries + first + i;
        memcpy(s->q[i], (const REAL *)call->q + query * U, (size_t)U * sizeof(REAL));
        memcpy(s->last + i * s->vectors, (const REAL *)call->t + query * call->total_length + others,
               (size_t)last * sizeof(REAL));
        if (!backward) continue;
        memcpy(s->grad_q[i], (const REAL *)call->grad_u + query * U, (size_t)U * sizeof(REAL));
        memcpy(s->grad_last + i * s->vectors, (const REAL *)call->grad_r + query * call->total_length + others,
               (size_t)last * sizeof(REAL));
    }
    return block;
}

/* Reads row `row` of the inputs; `position` becomes its index on each axis but the last. */
static void NAME(read_row)(const Call *call, State *s, int64_t sample, int64_t row, int64_t *position) {
    const int64_t A = call->axes, last = call->lengths[A - 1], *stride = call->content_strides;
    int64_t start = sample * stride[0];
    for (int64_t a = A - 2, rest = row; a >= 0; a--) {
        position[a] = rest % call->lengths[a];
        rest /= call->lengths[a];
        start += position[a] * stride[2 + a];
    }
    for (int64_t c = 0; c < call->content_channels; c++) {
        const REAL *from = (const REAL *)call->content + start + c * stride[1];
        REAL *to = (REAL *)(s->u + c * s->vectors);
        if (stride[1 + A] == 1)
            memcpy(to, from, (size_t)last * sizeof(REAL));
        else
            for (int64_t j = 0; j < last; j++) to[j] = from[j * stride[1 + A]];
    }
    const int64_t input = sample * call->inputs + row * last;
    memcpy(s->rho, (const REAL *)call->rho + input, (size_t)last * sizeof(REAL));
    REAL *off = (REAL *)s->off;
    for (int64_t j = 0; j < s->padded; j++)
        off[j] = j < last && (!call->mask || call->mask[input + j]) ? (REAL)0 : (REAL)-INFINITY;
}

/* Sum over the outer axes of their tables at a row: the part of the scores that a row has in common. */
INLINE REAL NAME(at_row)(const Call *call, const void *tables, int64_t query, const int64_t *position) {
    const REAL *table = (const REAL *)tables + query * call->total_length;
    REAL sum = 0;
    for (int64_t a = 0; a < call->axes - 1; table += call->lengths[a++]) sum += table[position[a]];
    return sum;
}

INLINE void NAME(add_at_row)(const Call *call, double *outer, const int64_t *position, double value) {
    for (int64_t a = 0; a < call->axes - 1; outer += call->lengths[a++]) outer[position[a]] += value;
}

static void NAME(fold)(State *s) {
    REAL *sums = (REAL *)s->sums;
    for (int64_t j = 0; j < QUERIES * s->padded; j++) s->folded[j] += (double)sums[j], sums[j] = 0;
}

static void NAME(fold_lanes)(const Call *call, State *s) {
    for (int i = 0; i < QUERIES; i++) {
        s->total[i] += NAME(total)(s->lane_total[i]), s->lane_total[i] = (V){0};
        for (int64_t c = 0; c < call->content_channels; c++)
            s->content[i][c] += NAME(total)(s->lane_content[i][c]), s->lane_content[i][c] = (V){0};
    }
}

static void NAME(write)(const Call *call, const State *s, int64_t sample, int64_t first, int divide) {
    const int64_t U = call->content_channels, last = call->lengths[call->axes - 1], others = call->total_length - last;
    for (int i = 0; i < QUERIES && first + i < call->queries; i++) {
        const int64_t query = sample * call->queries + first + i;
        const double factor = !divide ? 1 : s->total[i] == 0 ? 0 : 1 / s->total[i]; /* NaN stays NaN */
        for (int64_t c = 0; c < U; c++) ((REAL *)call->out_u)[query * U + c] = (REAL)(s->content[i][c] * factor);
        REAL *out = (REAL *)call->out_t + query * call->total_length;
        for (int64_t j = 0; j < others; j++) out[j] = (REAL)(s->outer[i * others + j] * factor);
        for (int64_t j = 0; j < last; j++) out[others + j] = (REAL)(s->folded[i * s->padded + j] * factor);
        if (divide) ((REAL *)call->out_lse)[query] = (REAL)(s->total[i] == 0 ? -INFINITY : log(s->total[i]) + s->max[i]);
    }
}

/* Four queries against one row, forward. U is a constant where this is inlined. */
INLINE void NAME(forward_block)(const Call *call, State *s, int64_t sample, int64_t first, int i0, const int64_t *position,
                                const int64_t U) {
    const int64_t vectors = s->vectors, others = call->total_length - call->lengths[call->axes - 1];
    V most[BLOCK], row[BLOCK], total[BLOCK], content[BLOCK][MAX_CONTENT];
    REAL base[BLOCK];
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        const int64_t query = first + i0 + i < call->queries ? first + i0 + i : call->queries - 1;
        base[i] = NAME(at_row)(call, call->t, sample * call->queries + query, position);
        most[i] = NAME(splat)((REAL)-INFINITY);
        row[i] = (V){0};
    }
    for (int64_t j = 0; j < vectors; j++) {
        const V rho = s->rho[j], off = s->off[j];
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK; i++) {
            V score = s->last[(i0 + i) * vectors + j] + base[i];
            for (int64_t c = 0; c < U; c++) score = s->u[c * vectors + j] * s->q[i0 + i][c] + score;
            score = score * rho + off;
            s->scores[i * vectors + j] = score;
            most[i] = NAME(larger)(score, most[i]);
        }
    }
    for (int i = 0; i < BLOCK; i++) {
        REAL max = (REAL)-INFINITY, old = s->max[i0 + i];
        for (int lane = 0; lane < LANES; lane++) max = most[i][lane] > max ? most[i][lane] : max;
        if (!(max > old + MARGIN)) continue; /* from -inf every score rises */
        const double factor = old == (REAL)-INFINITY ? 0 : exp((double)old - (double)max);
        s->max[i0 + i] = max;
        s->total[i0 + i] *= factor;
        s->lane_total[i0 + i] *= (REAL)factor;
        for (int64_t c = 0; c < U; c++) s->content[i0 + i][c] *= factor, s->lane_content[i0 + i][c] *= (REAL)factor;
        for (int64_t j = 0; j < others; j++) s->outer[(i0 + i) * others + j] *= factor;
        for (int64_t j = 0; j < s->padded; j++) s->folded[(i0 + i) * s->padded + j] *= factor;
        for (int64_t j = 0; j < vectors; j++) s->sums[(i0 + i) * vectors + j] *= (REAL)factor;
    }
    REAL max[BLOCK];
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        max[i] = s->max[i0 + i] == (REAL)-INFINITY ? 0 : s->max[i0 + i];
        total[i] = s->lane_total[i0 + i];
        for (int64_t c = 0; c < U; c++) content[i][c] = s->lane_content[i0 + i][c];
    }
    for (int64_t j = 0; j < vectors; j++) {
        const V rho = s->rho[j];
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK; i++) {
            const V a = NAME(exponential)(s->scores[i * vectors + j] - max[i]), weight = a * rho;
            total[i] += a;
            row[i] += weight;
            s->sums[(i0 + i) * vectors + j] += weight;
            for (int64_t c = 0; c < U; c++) content[i][c] = weight * s->u[c * vectors + j] + content[i][c];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        s->lane_total[i0 + i] = total[i];
        for (int64_t c = 0; c < U; c++) s->lane_content[i0 + i][c] = content[i][c];
        NAME(add_at_row)(call, s->outer + (i0 + i) * others, position, NAME(total)(row[i]));
    }
}

/* Four queries against one row, backward. */
INLINE void NAME(backward_block)(const Call *call, State *s, int64_t sample, int64_t first, int i0, const int64_t *position,
                                 const int64_t U) {
    const int64_t vectors = s->vectors, others = call->total_length - call->lengths[call->axes - 1];
    V row[BLOCK], content[BLOCK][MAX_CONTENT];
    REAL base[BLOCK], grad_base[BLOCK], lse[BLOCK], offset[BLOCK];
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        const int64_t query = sample * call->queries + (first + i0 + i < call->queries ? first + i0 + i : call->queries - 1);
        base[i] = NAME(at_row)(call, call->t, query, position);
        grad_base[i] = NAME(at_row)(call, call->grad_r, query, position);
        lse[i] = ((const REAL *)call->lse)[query];
        if (lse[i] == (REAL)-INFINITY) lse[i] = 0;
        offset[i] = ((const REAL *)call->offset)[query];
        row[i] = (V){0};
        for (int64_t c = 0; c < U; c++) content[i][c] = s->lane_content[i0 + i][c];
    }
    for (int64_t j = 0; j < vectors; j++) {
        const V rho = s->rho[j], off = s->off[j];
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK; i++) {
            V score = s->last[(i0 + i) * vectors + j] + base[i], grad = s->grad_last[(i0 + i) * vectors + j] + grad_base[i];
            for (int64_t c = 0; c < U; c++) {
                const V u = s->u[c * vectors + j];
                score = u * s->q[i0 + i][c] + score;
                grad = u * s->grad_q[i0 + i][c] + grad;
            }
            const V a = NAME(exponential)(score * rho + off - lse[i]);
            const V weight = a * (grad * rho + offset[i]) * rho;
            row[i] += weight;
            s->sums[(i0 + i) * vectors + j] += weight;
            for (int64_t c = 0; c < U; c++) content[i][c] = weight * s->u[c * vectors + j] + content[i][c];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK; i++) {
        for (int64_t c = 0; c < U; c++) s->lane_content[i0 + i][c] = content[i][c];
        NAME(add_at_row)(call, s->outer + (i0 + i) * others, position, NAME(total)(row[i]));
    }
}

/* Calls a block function for each row and each block of queries, its U a constant where that is common. */
#define EACH_ROW(block, divide)                                                                      \
    State state, *s = &state;                                                                        \
    void *memory = NAME(prepare)(call, s, sample, first, !(divide));                                 \
    if (!memory) return 1;                                                                           \
    const int64_t U = call->content_channels, rows = call->inputs / call->lengths[call->axes - 1];   \
    const int64_t rows_a_fold = s->vectors < FOLD ? FOLD / s->vectors : 1;                           \
    int64_t position[MAX_AXES];                                                                      \
    for (int64_t row = 0; row < rows; row++) {                                                       \
        NAME(read_row)(call, s, sample, row, position);                                              \
        for (int i = 0; i < QUERIES && first + i < call->queries; i += BLOCK)                        \
            switch (U) {                                                                             \
                case 1: NAME(block)(call, s, sample, first, i, position, 1); break;                  \
                case 2: NAME(block)(call, s, sample, first, i, position, 2); break;                  \
                case 3: NAME(block)(call, s, sample, first, i, position, 3); break;                  \
                default: NAME(block)(call, s, sample, first, i, position, U);                        \
            }                                                                                        \
        if (row % rows_a_fold == rows_a_fold - 1) NAME(fold_lanes)(call, s);                         \
        if (row % FOLD == FOLD - 1) NAME(fold)(s);                                                   \
    }                                                                                                \
    NAME(fold_lanes)(call, s);                                                                       \
    NAME(fold)(s);                                                                                   \
    NAME(write)(call, s, sample, first, divide);                                                     \
    free(memory);                                                                                    \
    return 0;

static int NAME(forward)(const Call *call, int64_t sample, int64_t first) { EACH_ROW(forward_block, 1) }
static int NAME(backward)(const Call *call, int64_t sample, int64_t first) { EACH_ROW(backward_block, 0) }

#undef EACH_ROW
#undef State
#undef V
#undef I
#undef LANES
#undef INLINE
#undef IS_DOUBLE
#undef REAL

#endif
