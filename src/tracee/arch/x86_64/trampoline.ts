// Jumps that are written over the first instructions of a function: to another place in memory, or into a system call. They
// may change rax alone, which holds no argument.

/** Bytes that every jump fits in: the functions of a vdso lie at least so far from each other. */
export const TRAMPOLINE_SIZE = 16;

/** `movabs rax,TARGET; jmp rax`, filled up with `int3`. */
export function jumpTo(target: number): Buffer {
  const code = Buffer.alloc(TRAMPOLINE_SIZE, 0xcc);
  code.set([0x48, 0xb8], 0);
  code.writeBigUInt64LE(BigInt(target), 2);
  code.set([0xff, 0xe0], 10);
  return code;
}

/** `mov r10,rcx; mov eax,NUMBER; syscall; ret`: the function's arguments are those of the system call. */
export function systemCall(number: number): Buffer {
  const code = Buffer.alloc(TRAMPOLINE_SIZE, 0xcc);
  code.set([0x49, 0x89, 0xca, 0xb8], 0);
  code.writeUInt32LE(number, 4);
  code.set([0x0f, 0x05, 0xc3], 8);
  return code;
}
