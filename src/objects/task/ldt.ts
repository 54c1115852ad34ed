// The local descriptor table of a process (modify_ldt(2)): segments of its own, as programs for 16 and 32 bits have them in
// emulators. The kernel gives them back as the processor has them (Intel SDM volume 3, 3.4.5), and takes struct user_desc. Whether
// there are any is asked of all; the table itself, of up to 64 KiB, only of those who have one.

import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../../sys/abi/mman.ts";
import { errnoName } from "../../sys/errno.ts";
import { readMemory } from "../../sys/memory.ts";
import { Program, type ProgramResult } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

const DESCRIPTOR_SIZE = 8;
const MAX_DESCRIPTORS = 8192;
const TABLE_SIZE = DESCRIPTOR_SIZE * MAX_DESCRIPTORS;

/** Functions of modify_ldt: read, and write as the kernel does it today. */
const READ = 0;
const WRITE = 0x11;

/** Asks whether a process has a table. */
export function probeLdt(program: Program): Probe<boolean> {
  const first = program.output(DESCRIPTOR_SIZE);
  const read = program.call("modify_ldt", [READ, first, DESCRIPTOR_SIZE], {
    label: "look for a local descriptor table",
    mayFail: true,
  });
  return (result) => result.value(read) > 0;
}

/** The table of a stopped process, without what is unused at its end; `run` runs a program in it. */
export function readLdt(pid: number, run: (program: Program) => ProgramResult): Uint8Array {
  const reading = new Program();
  const label = "read the local descriptor table";
  const protection = PROT_READ | PROT_WRITE;
  const room = reading.call(
    "mmap",
    [0, TABLE_SIZE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0],
    { label },
  );
  reading.call("modify_ldt", [READ, room, TABLE_SIZE], { label });
  const address = run(reading).value(room);
  const table = Buffer.alloc(TABLE_SIZE);
  readMemory(pid, [{ address, length: TABLE_SIZE }], table);
  const giving = new Program();
  giving.call("munmap", [address, TABLE_SIZE], { label });
  run(giving);
  const used = table.findLastIndex((byte) => byte !== 0) + 1;
  return table.subarray(0, Math.ceil(used / DESCRIPTOR_SIZE) * DESCRIPTOR_SIZE);
}

/** Adds the calls that make the table again. Returns a probe of what could not be made, a sentence each. */
export function restoreLdt(program: Program, table: Uint8Array): Probe<string[]> {
  const bytes = Buffer.from(table);
  const calls = Array.from({ length: Math.floor(bytes.length / DESCRIPTOR_SIZE) }, (_, number) => {
    const low = bytes.readUInt32LE(number * DESCRIPTOR_SIZE);
    const high = bytes.readUInt32LE(number * DESCRIPTOR_SIZE + 4);
    if (low === 0 && high === 0) return [];
    const label = `make local descriptor ${number}`;
    const described = program.data(userDescriptor(number, low, high));
    const args = [WRITE, described, USER_DESCRIPTOR_SIZE];
    return [[label, program.call("modify_ldt", args, { label, mayFail: true })] as const];
  }).flat();
  return (result) =>
    calls.flatMap(([label, call]) => {
      const error = result.value(call);
      return error < 0 ? [`cannot ${label}: modify_ldt: ${errnoName(-error)}`] : [];
    });
}

const USER_DESCRIPTOR_SIZE = 16;

/** struct user_desc: number, base, limit, and bits; from the halves of a descriptor of the processor. */
function userDescriptor(number: number, low: number, high: number): Buffer {
  const bit = (at: number): number => (high >>> at) & 1;
  const described = Buffer.alloc(USER_DESCRIPTOR_SIZE);
  described.writeUInt32LE(number, 0);
  described.writeUInt32LE(((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff00_0000)) >>> 0, 4);
  described.writeUInt32LE((low & 0xffff) | (high & 0xf_0000), 8);
  const flags =
    bit(22) | // seg_32bit
    (((high >>> 10) & 3) << 1) | // contents
    ((bit(9) ^ 1) << 3) | // read_exec_only
    (bit(23) << 4) | // limit_in_pages
    ((bit(15) ^ 1) << 5) | // seg_not_present
    (bit(20) << 6); // useable
  described.writeUInt32LE(flags, 12);
  return described;
}
