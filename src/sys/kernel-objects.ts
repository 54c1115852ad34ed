// Objects of the kernel by the names of their fields: kernel-memory.ts with kernel-types.ts.

import type { KernelMemory } from "./kernel-memory.ts";
import { KernelTypes } from "./kernel-types.ts";

export class KernelObjects {
  readonly memory: KernelMemory;
  readonly types: KernelTypes;

  /** @throws RepriseError KERNEL_FEATURE */
  constructor(memory: KernelMemory) {
    this.memory = memory;
    this.types = KernelTypes.ofKernel();
  }

  /** Where a field of an object is. */
  at(object: bigint, path: string): bigint {
    return object + BigInt(this.types.field(path).offset);
  }

  /** The object that has a field at an address. */
  around(field: bigint, path: string): bigint {
    return field - BigInt(this.types.field(path).offset);
  }

  /** 64 bits of an object, or of an address in it. */
  word(object: bigint, path: string): bigint {
    return this.memory.word(this.at(object, path));
  }

  /** 32 bits of an object. */
  number(object: bigint, path: string): number {
    return this.memory.read(this.at(object, path), 4).readUInt32LE();
  }

  short(object: bigint, path: string): number {
    return this.memory.read(this.at(object, path), 2).readUInt16LE();
  }

  byte(object: bigint, path: string): number {
    return this.memory.read(this.at(object, path), 1).readUInt8();
  }

  /** Whether a bit that an enumeration numbers is set. */
  hasBit(flags: bigint, name: string): boolean {
    return (flags & (1n << BigInt(this.types.constant(name)))) !== 0n;
  }
}
