/* resblock: fused SIMD, multithreaded CPU kernels for residual blocks, forward and backward. MIT OR Apache-2.0.
 *
 * All functions but those that say so return a status, and write nothing unless it is RESBLOCK_STATUS_OK; resblock_last_error() then says why, and names
 * the operand. Memory is the caller's; handles are freed by the function of their type. A handle may be used by several threads at once, a workspace by one. */


#ifndef RESBLOCK_H
#define RESBLOCK_H

/* Generated with cbindgen:0.29.4 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Gradients replace what is there.
#define RESBLOCK_OVERWRITE 0

// Gradients are added to what is there.
#define RESBLOCK_ACCUMULATE 1

// φ(z) = z.
#define RESBLOCK_IDENTITY 0

// max(z, 0).
#define RESBLOCK_RELU 1

// z if z > 0, else `parameter` times z.
#define RESBLOCK_LEAKY_RELU 2

// z times the normal distribution function.
#define RESBLOCK_GELU 3

// GELU by tanh.
#define RESBLOCK_GELU_TANH 4

// z / (1 + e^-z).
#define RESBLOCK_SILU 5

// tanh(z).
#define RESBLOCK_TANH 6

// 1 / (1 + e^-z).
#define RESBLOCK_SIGMOID 7

// max(z, 0)².
#define RESBLOCK_RELU_SQUARED 8

// z / (1 + e^(-`parameter` z)).
#define RESBLOCK_SILU_BETA 9

// z tanh(ln(1 + e^z)).
#define RESBLOCK_MISH 10

// z min(max(z + 3, 0), 6) / 6.
#define RESBLOCK_HARDSWISH 11

// z if z > 0, else `parameter` (e^z - 1).
#define RESBLOCK_ELU 12

// ln(1 + e^z).
#define RESBLOCK_SOFTPLUS 13

// No norm.
#define RESBLOCK_NORM_NONE 0

// LayerNorm.
#define RESBLOCK_NORM_LAYER 1

// RMSNorm.
#define RESBLOCK_NORM_RMS 2

// BatchNorm.
#define RESBLOCK_NORM_BATCH 3

// y = x + G(x).
#define RESBLOCK_SKIP_IDENTITY 0

// y = G(x).
#define RESBLOCK_SKIP_NONE 1

// y = x Wsᵀ + bs + G(x).
#define RESBLOCK_SKIP_PROJECTION 2

// The branch is multiplied by `value`, which is not learned.
#define RESBLOCK_SCALE_CONSTANT 0

// By one number that is learned, from `value` on.
#define RESBLOCK_SCALE_SCALAR 1

// By a number for each output that is learned, from `value` on.
#define RESBLOCK_SCALE_VECTOR 2

// The formula is `block`.
#define RESBLOCK_FORMULA_BLOCK 0

// The formula is `linear`.
#define RESBLOCK_FORMULA_LINEAR 1

// The formula is `norm`.
#define RESBLOCK_FORMULA_NORM 2

// The matrix of an affine map, (outputs, inputs).
#define RESBLOCK_ROLE_WEIGHT 0

// What an affine map adds.
#define RESBLOCK_ROLE_BIAS 1

// γ of a norm.
#define RESBLOCK_ROLE_GAIN 2

// β of a norm.
#define RESBLOCK_ROLE_SHIFT 3

// What a branch is multiplied by.
#define RESBLOCK_ROLE_SCALE 4

// The running average of a BatchNorm's mean, which has no gradient.
#define RESBLOCK_ROLE_RUNNING_MEAN 5

// The running average of a BatchNorm's variance, which has no gradient.
#define RESBLOCK_ROLE_RUNNING_VARIANCE 6

// Whether a function has done what it was asked for; nothing is written where it has not.
typedef enum resblock_status {
  // It has.
  RESBLOCK_STATUS_OK = 0,
  // A pointer is NULL that must not be.
  RESBLOCK_STATUS_NULL_POINTER = 1,
  // A matrix has the wrong shape.
  RESBLOCK_STATUS_SHAPE = 2,
  // A list has the wrong length.
  RESBLOCK_STATUS_LENGTH = 3,
  // A setting is outside its range, or a form contradicts itself.
  RESBLOCK_STATUS_SETTING = 4,
  // Sizes overflow the address range.
  RESBLOCK_STATUS_OVERFLOW = 5,
  // The system gives no memory.
  RESBLOCK_STATUS_MEMORY = 6,
  // A record is not one that this function left for so many rows.
  RESBLOCK_STATUS_RECORD = 7,
  // The CPU has no such instruction set.
  RESBLOCK_STATUS_ISA = 8,
  // A file cannot be read or written, or is not of this network.
  RESBLOCK_STATUS_FILE = 9,
  // Something that is not foreseen: a defect of the library.
  RESBLOCK_STATUS_PANIC = 10,
  // Any other error.
  RESBLOCK_STATUS_OTHER = 11,
} resblock_status;

// How calls run: threads, instruction set, and what masks of dropout are drawn from.
typedef struct resblock_context resblock_context;

// One formula, or several one after the other, compiled: a function of x and of parameters, which the caller keeps.
typedef struct resblock_function resblock_function;

// A function with a copy of its parameters, laid out as kernels like them best. Its results are the same bits.
typedef struct resblock_layer resblock_layer;

// The memory that calls reuse: one for each call that runs at the same time.
typedef struct resblock_workspace resblock_workspace;

// A parameter, of the shape that the function's tensor has. Strides are those of weights, as of a matrix; of all else they are 0 or ignored.
typedef struct resblock_parameter {
  // Its first element.
  const float *data;
  // Elements from an output to the next.
  size_t row_stride;
  // Elements from an input to the next.
  size_t col_stride;
} resblock_parameter;

// A matrix to read. Strides are in elements; both 0: row-major without gaps.
typedef struct resblock_const_matrix {
  // Its first element; may be NULL where there are no elements.
  const float *data;
  // Rows.
  size_t rows;
  // Columns.
  size_t cols;
  // Elements from a row to the next.
  size_t row_stride;
  // Elements from a column to the next.
  size_t col_stride;
} resblock_const_matrix;

// A matrix to write. Strides are in elements; both 0: row-major without gaps.
typedef struct resblock_matrix {
  // Its first element; may be NULL where there are no elements.
  float *data;
  // Rows.
  size_t rows;
  // Columns.
  size_t cols;
  // Elements from a row to the next.
  size_t row_stride;
  // Elements from a column to the next.
  size_t col_stride;
} resblock_matrix;

// Where the gradient of a parameter goes.
typedef struct resblock_gradient {
  // Its first element; NULL: it is not wanted, and not computed.
  float *data;
  // Elements from an output to the next.
  size_t row_stride;
  // Elements from an input to the next.
  size_t col_stride;
} resblock_gradient;

// One turn of a loop: `arg` is what the loop was given.
typedef void (*resblock_body)(void *arg, size_t index);

// A loop of the caller's: does body(arg, i) once for each i below count, on any threads, at once or one after the other, and returns when all are done.
typedef void (*resblock_parallel_for)(void *user, size_t count, resblock_body body, void *arg);

// An activation.
typedef struct resblock_activation {
  // RESBLOCK_RELU, ...
  uint32_t kind;
  // Of those that have one.
  float parameter;
} resblock_activation;

// A norm.
typedef struct resblock_norm {
  // RESBLOCK_NORM_NONE, ...
  uint32_t kind;
  // ε.
  float epsilon;
  // Whether there is a γ.
  bool gain;
  // Whether there is a β.
  bool shift;
} resblock_norm;

// What the branch of a block is multiplied by.
typedef struct resblock_branch_scale {
  // RESBLOCK_SCALE_CONSTANT, ...
  uint32_t kind;
  // The number.
  float value;
} resblock_branch_scale;

// Probabilities to drop.
typedef struct resblock_dropout {
  // Elements of h.
  float hidden;
  // Elements of the branch.
  float branch;
  // The branch of a whole row.
  float depth;
} resblock_dropout;

// A residual block of two weight layers:
//
// ```text
// n = a(N1(x)),  z = n W1ᵀ + b1,  h = φ(N2(z))  or, gated,  h = φ(z) ⊙ (n W3ᵀ + b3),  F = N4(drop(h) W2ᵀ + b2), dropped itself
// r = α S(x) + λ F,  y = p(r)  or  N3(r)
// ```
//
// N1, N2, N3, N4: pre_norm, inner_norm, post_norm, branch_norm; a, φ, p: pre_activation, activation, post_activation; S, α: skip, skip_scale;
// λ: branch_scale. Begin with resblock_form_new or resblock_form_named, and change what differs.
typedef struct resblock_form {
  // Features of x.
  size_t inputs;
  // Features of h.
  size_t hidden;
  // Features of y.
  size_t outputs;
  // Whether the maps have biases.
  bool biases;
  // Whether there is a W3.
  bool gated;
  // φ.
  struct resblock_activation activation;
  // a.
  struct resblock_activation pre_activation;
  // p.
  struct resblock_activation post_activation;
  // N1.
  struct resblock_norm pre_norm;
  // N2.
  struct resblock_norm inner_norm;
  // N3.
  struct resblock_norm post_norm;
  // N4.
  struct resblock_norm branch_norm;
  // S: RESBLOCK_SKIP_IDENTITY, ...
  uint32_t skip;
  // α.
  float skip_scale;
  // λ.
  struct resblock_branch_scale branch_scale;
  // What is dropped in recorded passes that have a draw.
  struct resblock_dropout dropout;
  // Factors on the initial W1 (and W3) and W2.
  float init_scales[2];
} resblock_form;

// y = φ(x Wᵀ + b) (+ x).
typedef struct resblock_linear {
  // Features of x.
  size_t inputs;
  // Features of y.
  size_t outputs;
  // Whether there is a b.
  bool bias;
  // Whether x is added.
  bool residual;
  // φ.
  struct resblock_activation activation;
} resblock_linear;

// y = φ(N(x)).
typedef struct resblock_norm_layer {
  // Features of x and y.
  size_t width;
  // N.
  struct resblock_norm norm;
  // φ.
  struct resblock_activation activation;
} resblock_norm_layer;

// What a layer computes: the member that `kind` names; the others are ignored.
typedef struct resblock_formula {
  // RESBLOCK_FORMULA_BLOCK, ...
  uint32_t kind;
  // A block.
  struct resblock_form block;
  // A linear layer.
  struct resblock_linear linear;
  // A norm.
  struct resblock_norm_layer norm;
} resblock_formula;

// What a parameter is.
typedef struct resblock_tensor {
  // Its name, as long as the function is there: `first.weight`, say.
  const char *name;
  // RESBLOCK_ROLE_WEIGHT, ...
  uint32_t role;
  // Outputs of weights; 1 of all else.
  size_t rows;
  // Inputs of weights; the length of all else.
  size_t cols;
} resblock_tensor;

// Settings of AdamW.
typedef struct resblock_adamw {
  // Learning rate.
  float lr;
  // Decay of the first moment: 0.9.
  float beta1;
  // Decay of the second moment: 0.999.
  float beta2;
  // ε: 1e-8.
  float eps;
  // Weight decay: 0.01.
  float weight_decay;
} resblock_adamw;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// y = f(x; params), and nothing is recorded. x: rows × inputs; y: rows × outputs; `params`: one for each tensor of the function, in its order.
enum resblock_status resblock_infer(const struct resblock_function *function,
                                    const struct resblock_context *context,
                                    struct resblock_workspace *workspace,
                                    const struct resblock_parameter *params,
                                    size_t count,
                                    struct resblock_const_matrix x,
                                    struct resblock_matrix y);

// As resblock_infer, with a record for backward: resblock_record_len floats of the caller's.
enum resblock_status resblock_forward(const struct resblock_function *function,
                                      const struct resblock_context *context,
                                      struct resblock_workspace *workspace,
                                      const struct resblock_parameter *params,
                                      size_t count,
                                      struct resblock_const_matrix x,
                                      struct resblock_matrix y,
                                      float *record,
                                      size_t record_len);

// From a record and dy = ∂L/∂y (rows × outputs): dx (rows × inputs), unless it is NULL, and the gradients that `grads` has a place for: one for each
// tensor of the function; of running averages there is none. `params` are those of the forward pass; the record may be read again. `mode`:
// RESBLOCK_OVERWRITE or RESBLOCK_ACCUMULATE, of the parameters' gradients.
enum resblock_status resblock_backward(const struct resblock_function *function,
                                       const struct resblock_context *context,
                                       struct resblock_workspace *workspace_,
                                       const struct resblock_parameter *params,
                                       size_t count,
                                       const float *record,
                                       size_t record_len,
                                       struct resblock_const_matrix dy,
                                       const struct resblock_matrix *dx,
                                       const struct resblock_gradient *grads,
                                       uint32_t mode);

// Brings running averages of BatchNorms up to date with the batch of a recorded pass: `running` has one list for each tensor of the function, NULL but
// for running averages.
enum resblock_status resblock_update_statistics(const struct resblock_function *function,
                                                const float *record,
                                                size_t record_len,
                                                float momentum,
                                                float *const *running,
                                                size_t count);

// The fastest instruction set of this CPU, on the calling thread alone.
enum resblock_status resblock_context_new(struct resblock_context **out);

// Frees it. NULL is let be.
void resblock_context_free(struct resblock_context *context);

// At most so many threads of the library's own pool, the calling one among them; 1: that alone; 0: as many as the pool has.
enum resblock_status resblock_context_set_threads(struct resblock_context *context,
                                                  size_t threads);

// Threads of the caller's: calls use at most so many turns of this loop at once. It is asked once for a call. NULL: the library's own, again.
enum resblock_status resblock_context_set_parallel_for(struct resblock_context *context,
                                                       size_t threads,
                                                       resblock_parallel_for parallel_for,
                                                       void *user);

// How long helpers wait for the next call after one: 50 microseconds, unless set.
enum resblock_status resblock_context_set_linger(struct resblock_context *context, uint64_t microseconds);

// Another instruction set: `avx512`, `avx2`, `neon` or `scalar`. All give the same bits.
enum resblock_status resblock_context_set_isa(struct resblock_context *context, const char *name);

// What masks of dropout are drawn from in recorded passes: seed and step of a run, and which row of the batch is the first of a call.
enum resblock_status resblock_context_set_draw(struct resblock_context *context,
                                               uint64_t seed,
                                               uint32_t step,
                                               uint64_t first_row);

// Nothing is dropped, as at first.
enum resblock_status resblock_context_clear_draw(struct resblock_context *context);

// Whether recorded passes normalise by the running averages of BatchNorms.
enum resblock_status resblock_context_set_frozen_statistics(struct resblock_context *context, bool frozen);

// A workspace without memory yet. NULL only if the system gives none.
struct resblock_workspace *resblock_workspace_new(void);

// Frees it. NULL is let be.
void resblock_workspace_free(struct resblock_workspace *workspace);

// y = x + φ(x W1ᵀ + b1) W2ᵀ + b2 on d features with h hidden ones. Does not return a status: an activation that there is none of is found by
// resblock_function_new.
struct resblock_form resblock_form_new(size_t d,
                                       size_t h,
                                       uint32_t activation);

// A published block on d features with h hidden ones: `gpt2`, `vit`, `bert`, `llama`, `t5`, `cait`, `sandwich`, `rezero`, `tabular`, `resnet_v1` or
// `resnet_v2`.
enum resblock_status resblock_form_named(const char *name,
                                         size_t d,
                                         size_t h,
                                         struct resblock_form *form);

// A block as a formula. Does not return a status.
struct resblock_formula resblock_formula_block(struct resblock_form block);

// y = φ(x Wᵀ + b) as a formula. Does not return a status.
struct resblock_formula resblock_formula_linear(size_t inputs, size_t outputs, uint32_t activation);

// y = N(x) as a formula: `kind` is RESBLOCK_NORM_LAYER, ..., with gain and, but for RMSNorm, shift. Does not return a status.
struct resblock_formula resblock_formula_norm(size_t width,
                                              uint32_t kind,
                                              float epsilon);

// Compiles formulas, one after the other. `keep_inputs`: records hold what enters each layer alone, and backward computes the rest again: the same bits,
// less memory, more time.
enum resblock_status resblock_function_new(const struct resblock_formula *formulas,
                                           size_t count,
                                           bool keep_inputs,
                                           struct resblock_function **out);

// Frees it. NULL is let be.
void resblock_function_free(struct resblock_function *function);

// Features of x, of y, and how many parameters there are: any of the three may be NULL.
enum resblock_status resblock_function_sizes(const struct resblock_function *function,
                                             size_t *inputs,
                                             size_t *outputs,
                                             size_t *tensors);

// Parameter `index`, in the order of calls.
enum resblock_status resblock_function_tensor(const struct resblock_function *function,
                                              size_t index,
                                              struct resblock_tensor *tensor);

// Floats of the record of so many rows, whatever the threads.
enum resblock_status resblock_record_len(const struct resblock_function *function, size_t rows, size_t *len);

// New parameters, one list for each, row-major: weights by He et al. 2015, times the form's init_scales; the rest as each role begins.
enum resblock_status resblock_init(const struct resblock_function *function,
                                   uint64_t seed,
                                   float *const *params,
                                   size_t count);

// A copy of parameters that do not change.
enum resblock_status resblock_layer_pack(const struct resblock_function *function,
                                         const struct resblock_parameter *params,
                                         size_t count,
                                         struct resblock_layer **out);

// The layer that a file has: safetensors, saved by resblock_layer_save or by the Rust crate.
enum resblock_status resblock_layer_load(const char *path,
                                         const struct resblock_formula *formulas,
                                         size_t count,
                                         struct resblock_layer **out);

// Writes it to a file: safetensors.
enum resblock_status resblock_layer_save(const struct resblock_layer *layer, const char *path);

// y = f(x).
enum resblock_status resblock_layer_infer(const struct resblock_layer *layer,
                                          const struct resblock_context *context,
                                          struct resblock_workspace *workspace_,
                                          struct resblock_const_matrix x,
                                          struct resblock_matrix y);

// Frees it. NULL is let be.
void resblock_layer_free(struct resblock_layer *layer);

// The usual settings. Does not return a status.
struct resblock_adamw resblock_adamw_new(float lr);

// Step number `step`, from 1 on, of one parameter of `len` elements, whose moments `m` and `v` the caller keeps: zeros before the first.
enum resblock_status resblock_adamw_step(struct resblock_adamw settings,
                                         const struct resblock_context *context,
                                         uint64_t step,
                                         float *parameter,
                                         const float *gradient,
                                         float *m,
                                         float *v,
                                         size_t len);

// The mean cross entropy of softmax(logits) and labels, one for each row, and its gradient, unless `dlogits` is NULL.
enum resblock_status resblock_softmax_cross_entropy(struct resblock_const_matrix logits,
                                                    const size_t *labels,
                                                    const struct resblock_matrix *dlogits,
                                                    double *loss);

// The mean of (y - target)² over all elements, and its gradient, unless `dy` is NULL.
enum resblock_status resblock_mean_squared_error(struct resblock_const_matrix y,
                                                 struct resblock_const_matrix target,
                                                 const struct resblock_matrix *dy,
                                                 double *loss);

// What the last call of this thread that failed says of it; an empty text, if there was none. It stays until the next one that fails. Never NULL.
const char *resblock_last_error(void);

// The library's version: `0.1.0`, say.
const char *resblock_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* RESBLOCK_H */
