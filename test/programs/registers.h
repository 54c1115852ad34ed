// Spins with a known pattern in every register: the integer ones, the x87 stack and its control
// word, mxcsr, and the widest vector registers that the processor has (zmm0-31 with k0-7, or ymm0-15, or
// xmm0-15). While it spins it touches memory only to count, so a stop falls into the pattern.
#pragma once
#include "test.h"
#include <cpuid.h>

struct registers {
  uint64_t integer[16];    // rax rbx rcx rdx rsi rdi rbp r8-r15, one unused
  uint8_t x87[8][16];      // ten bytes of each are used
  uint32_t mxcsr;          // at 256
  uint16_t control, pad;   // at 260
  uint64_t mask[8];        // at 264
  uint8_t pad2[56];
  uint8_t vector[32][64];  // at 384
};
_Static_assert(offsetof(struct registers, vector) == 384, "the assembly counts on it");

volatile uint32_t registers_spins;

void registers_spin_sse(const struct registers *in, struct registers *out);
void registers_spin_avx(const struct registers *in, struct registers *out);
void registers_spin_avx512(const struct registers *in, struct registers *out);

asm(R"(
.pushsection .text
.macro each_integer operation
  \operation 8, rbx
  \operation 16, rcx
  \operation 24, rdx
  \operation 32, rsi
  \operation 40, rdi
  \operation 48, rbp
  \operation 56, r8
  \operation 64, r9
  \operation 72, r10
  \operation 80, r11
  \operation 88, r12
  \operation 96, r13
  \operation 104, r14
  \operation 112, r15
.endm
.macro load_integer offset, register
  mov \offset(%rax), %\register
.endm
.macro store_integer offset, register
  mov %\register, \offset(%rax)
.endm
.macro spin name, move, width, last
  .globl \name
\name:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  push %rsi
  mov %rdi, %rax
  fninit
  .irp i,7,6,5,4,3,2,1,0
  fldt (128+\i*16)(%rax)
  .endr
  fldcw 260(%rax)
  ldmxcsr 256(%rax)
  .altmacro
  .set i, 0
  .rept \last+1
  vector_load \move, \width, %i
  .set i, i+1
  .endr
  .noaltmacro
  .ifc \width,zmm
  .irp i,0,1,2,3,4,5,6,7
  kmovq (264+\i*8)(%rax), %k\i
  .endr
  .endif
  each_integer load_integer
  mov (%rax), %rax
1:
  decl registers_spins(%rip)
  jnz 1b
  xchg %rax, (%rsp)
  each_integer store_integer
  pop %rcx
  mov %rcx, (%rax)
  .altmacro
  .set i, 0
  .rept \last+1
  vector_store \move, \width, %i
  .set i, i+1
  .endr
  .noaltmacro
  .ifc \width,zmm
  .irp i,0,1,2,3,4,5,6,7
  kmovq %k\i, (264+\i*8)(%rax)
  .endr
  .endif
  stmxcsr 256(%rax)
  fnstcw 260(%rax)
  .irp i,0,1,2,3,4,5,6,7
  fstpt (128+\i*16)(%rax)
  .endr
  fninit
  ldmxcsr registers_plain_mxcsr(%rip)
  .ifnc \width,xmm
  vzeroupper
  .endif
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.endm
.macro vector_load move, width, i
  \move (384+\i*64)(%rax), %\width\i
.endm
.macro vector_store move, width, i
  \move %\width\i, (384+\i*64)(%rax)
.endm
spin registers_spin_sse, movdqu, xmm, 15
spin registers_spin_avx, vmovdqu, ymm, 15
spin registers_spin_avx512, vmovdqu64, zmm, 31
registers_plain_mxcsr: .long 0x1f80
.popsection
)");

struct register_set {
  const char *name;
  void (*spin)(const struct registers *, struct registers *);
  int vectors, vector_bytes, masks;
};

SHARED_HELPER struct register_set registers_available(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
    return (struct register_set){"avx512", registers_spin_avx512, 32, 64, 8};
  if (__builtin_cpu_supports("avx"))
    return (struct register_set){"avx", registers_spin_avx, 16, 32, 0};
  return (struct register_set){"sse", registers_spin_sse, 16, 16, 0};
}

SHARED_HELPER void registers_pattern(struct registers *in, uint64_t seed) {
  fill(in, sizeof *in, seed);
  for (int i = 0; i < 8; i++) {
    in->x87[i][7] |= 0x80; // a normal number: the top bit of the significand is set
    in->x87[i][8] = (uint8_t)(seed + i);
    in->x87[i][9] = 0x3f;
  }
  in->mxcsr = 0x1f80 | 0x8000 | ((seed & 3) << 13); // flush to zero, and each way of rounding
  in->control = 0x027f | ((seed & 3) << 10);        // double precision, and each way of rounding
}

// Spins once and reports each register that came back different.
SHARED_HELPER void registers_verify(const struct register_set *set, const struct registers *in,
                                    uint32_t spins) {
  static __thread struct registers out;
  memset(&out, 0, sizeof out);
  registers_spins = spins;
  set->spin(in, &out);
  for (int i = 0; i < 15; i++)
    EXPECT(out.integer[i] == in->integer[i], "integer register %d is %lx", i, out.integer[i]);
  for (int i = 0; i < 8; i++)
    EXPECT(memcmp(out.x87[i], in->x87[i], 10) == 0, "st%d changed", i);
  for (int i = 0; i < set->masks; i++)
    EXPECT(out.mask[i] == in->mask[i], "k%d is %lx", i, out.mask[i]);
  for (int i = 0; i < set->vectors; i++)
    EXPECT(memcmp(out.vector[i], in->vector[i], set->vector_bytes) == 0, "vector %d changed", i);
  EXPECT(out.mxcsr == in->mxcsr, "mxcsr is %x, wanted %x", out.mxcsr, in->mxcsr);
  EXPECT(out.control == in->control, "x87 control is %x, wanted %x", out.control, in->control);
}
