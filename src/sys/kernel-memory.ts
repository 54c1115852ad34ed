// Reading the kernel's own memory, where no interface tells what an object holds: a bpf program of thirteen instructions that copies a
// range into a map which this process has in its memory (bpf_probe_read_kernel: an address that is none is an error, and nothing is ever
// written). It takes CAP_BPF and CAP_PERFMON in the initial user namespace, and a kernel that is not locked down to confidentiality.

import { closeSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import * as bpf from "./abi/bpf.ts";
import { MAP_SHARED, PROT_READ } from "./abi/mman.ts";
import { EAGAIN, EINVAL, errnoName } from "./errno.ts";
import { addressOf, memoryAt, syscall, trySyscall } from "./ffi.ts";
import { writeU64 } from "./memory.ts";
import type { KernelTypes } from "./kernel-types.ts";

/** Bytes that are copied at once. */
const WINDOW = 0x1_0000;
const PROG_LOAD_SIZE = 72;
const TEST_RUN_SIZE = 80;
/** What the program gets: an address (0: that of this thread's task_struct), and how many bytes. */
const REQUEST_SIZE = 16;

export class KernelMemory implements Disposable {
  readonly #map: number;
  readonly #program: number;
  readonly #address: number;
  readonly #window: Uint8Array;
  readonly #words: Int32Array;
  readonly #request = Buffer.alloc(REQUEST_SIZE);
  readonly #run = Buffer.alloc(TEST_RUN_SIZE);

  /** @throws RepriseError KERNEL_FEATURE where the kernel does not let us. */
  constructor() {
    this.#map = makeMap();
    this.#program = loadReader(this.#map);
    this.#address = syscall("mmap", 0, WINDOW, PROT_READ, MAP_SHARED, this.#map, 0);
    this.#window = memoryAt(this.#address, WINDOW);
    this.#words = new Int32Array(this.#window.buffer, this.#window.byteOffset, WINDOW / 4);
    this.#run.writeInt32LE(this.#program, 0);
    this.#run.writeUInt32LE(REQUEST_SIZE, 40);
    writeU64(this.#run, 48, addressOf(this.#request));
  }

  /**
   * A copy of a range.
   *
   * @throws RepriseError SYSCALL where there is no memory.
   */
  read(address: bigint, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; done += WINDOW) {
      const part = Math.min(WINDOW, length - done);
      this.#copy(address + BigInt(done), part);
      bytes.set(this.#window.subarray(0, part), done);
    }
    return bytes;
  }

  /**
   * A range in words of four bytes, which are good until the next one is read; not longer than a window.
   *
   * @throws RepriseError SYSCALL where there is no memory.
   */
  look(address: bigint, length: number): Int32Array {
    this.#copy(address, length);
    return this.#words;
  }

  /** A word: an address, or a number of 64 bits. */
  word(address: bigint): bigint {
    return this.read(address, 8).readBigUInt64LE();
  }

  /** The object behind a descriptor of this process (private_data of its struct file). */
  fileData(fd: number, types: KernelTypes): bigint {
    return this.word(this.file(fd, types) + BigInt(types.field("file.private_data").offset));
  }

  /** The struct file behind a descriptor of this process. */
  file(fd: number, types: KernelTypes): bigint {
    return this.files([fd], types)[0] as bigint;
  }

  /** The same of several. */
  files(fds: readonly number[], types: KernelTypes): bigint[] {
    const at = (path: string): bigint => BigInt(types.field(path).offset);
    const task = this.read(0n, types.field("task_struct.files").offset + 8);
    const files = task.readBigUInt64LE(types.field("task_struct.files").offset);
    const table = this.word(files + at("files_struct.fdt"));
    const array = this.word(table + at("fdtable.fd"));
    return fds.map((fd) => this.word(array + BigInt(fd * 8)));
  }

  #copy(address: bigint, length: number): void {
    this.#request.writeBigUInt64LE(address, 0);
    this.#request.writeUInt32LE(length, 8);
    syscall("bpf", bpf.BPF_PROG_TEST_RUN, this.#run, this.#run.length);
    const result = this.#run.readInt32LE(4);
    if (result === 0) return;
    throw new RepriseError(
      "SYSCALL",
      `cannot read the kernel's memory at ${address.toString(16)}: bpf: ${errnoName(-result)}`,
      { syscall: "bpf", errno: errnoName(-result) },
    );
  }

  [Symbol.dispose](): void {
    syscall("munmap", this.#address, WINDOW);
    closeSync(this.#program);
    closeSync(this.#map);
  }
}

function makeMap(): number {
  const attr = Buffer.alloc(bpf.MAP_CREATE_SIZE);
  const words = [bpf.BPF_MAP_TYPE_ARRAY, 4, WINDOW, 1, bpf.BPF_F_MMAPABLE];
  words.forEach((word, index) => attr.writeUInt32LE(word, index * 4));
  return made(trySyscall("bpf", bpf.BPF_MAP_CREATE, attr, attr.length));
}

function loadReader(map: number): number {
  const code = reader(map);
  // bpf_probe_read_kernel is for programs under a licence that is compatible with the kernel's.
  const licence = Buffer.from("Dual MIT/GPL\0");
  const attr = Buffer.alloc(PROG_LOAD_SIZE);
  attr.writeUInt32LE(bpf.BPF_PROG_TYPE_SYSCALL, 0);
  attr.writeUInt32LE(code.length / INSTRUCTION_SIZE, 4);
  writeU64(attr, 8, addressOf(code));
  writeU64(attr, 16, addressOf(licence));
  attr.writeUInt32LE(bpf.BPF_F_SLEEPABLE, 44);
  let program = -EAGAIN;
  // The verifier gives up when a signal waits to be taken (SIGCHLD, from tasks that stop), which has happened by the next call.
  for (let attempt = 0; program === -EAGAIN && attempt < MAX_ATTEMPTS; attempt++)
    program = trySyscall("bpf", bpf.BPF_PROG_LOAD, attr, attr.length);
  if (program < 0) closeSync(map);
  return made(program);
}

function made(fd: number): number {
  if (fd >= 0) return fd;
  throw new RepriseError(
    "KERNEL_FEATURE",
    `cannot look into the kernel's memory: bpf: ${errnoName(-fd)}`,
    {
      syscall: "bpf",
      errno: errnoName(-fd),
      hint: "It takes Linux 5.14 with bpf, CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) in the initial user namespace, and a kernel that is not locked down.",
    },
  );
}

const INSTRUCTION_SIZE = 8;
/** Instructions and helpers: include/uapi/linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst. */
const MOVE = 0xbf;
const MOVE_CONSTANT = 0xb7;
const LOAD_64 = 0x79;
const LOAD_32 = 0x61;
const LOAD_CONSTANT_64 = 0x18;
const JUMP_UNLESS_ZERO = 0x55;
const JUMP_IF_ABOVE = 0x25;
const CALL = 0x85;
const EXIT = 0x95;
const FUNC_GET_CURRENT_TASK = 35;
const FUNC_PROBE_READ_KERNEL = 113;
/** In place of the source register: the constant is the descriptor of a map, and stands for the address of its first value. */
const PSEUDO_MAP_VALUE = 2;
const MAX_ATTEMPTS = 20;

function reader(map: number): Buffer {
  return Buffer.concat([
    instruction(MOVE, { to: 6, from: 1 }),
    instruction(LOAD_64, { to: 3, from: 6 }),
    instruction(JUMP_UNLESS_ZERO, { to: 3, jump: 2 }),
    instruction(CALL, { constant: FUNC_GET_CURRENT_TASK }),
    instruction(MOVE, { to: 3, from: 0 }),
    instruction(LOAD_32, { to: 2, from: 6, jump: 8 }),
    instruction(JUMP_IF_ABOVE, { to: 2, jump: 4, constant: WINDOW }),
    instruction(LOAD_CONSTANT_64, { to: 1, from: PSEUDO_MAP_VALUE, constant: map }),
    instruction(0, {}),
    instruction(CALL, { constant: FUNC_PROBE_READ_KERNEL }),
    instruction(EXIT, {}),
    instruction(MOVE_CONSTANT, { to: 0, constant: -EINVAL }),
    instruction(EXIT, {}),
  ]);
}

interface Operands {
  readonly to?: number;
  readonly from?: number;
  /** Instructions to leave out, or the offset of what is loaded. */
  readonly jump?: number;
  readonly constant?: number;
}

function instruction(code: number, { to = 0, from = 0, jump = 0, constant = 0 }: Operands): Buffer {
  const bytes = Buffer.alloc(INSTRUCTION_SIZE);
  bytes.writeUInt8(code, 0);
  bytes.writeUInt8(to | (from << 4), 1);
  bytes.writeInt16LE(jump, 2);
  bytes.writeInt32LE(constant, 4);
  return bytes;
}
