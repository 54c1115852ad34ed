// Addresses that a thread has told the kernel: its list of robust futexes (set_robust_list(2)), its area for restartable
// sequences (rseq(2)), and the word that is cleared when it ends (set_tid_address(2)). glibc registers all three for every
// thread. They are read from outside, but for the last; the memory that they point to must be there when they are set.

import { RepriseError } from "../../errors.ts";
import type { RseqEntry, ThreadCoreEntry } from "../../images/schema/messages.generated.ts";
import {
  PR_GET_TID_ADDRESS,
  RSEQ_CS_FLAG_NO_RESTART_ON_SIGNAL,
  RSEQ_CS_OFFSET,
  RSEQ_CS_SIZE,
} from "../../sys/abi/sched.ts";
import { syscallError } from "../../sys/ffi.ts";
import { readMemory } from "../../sys/memory.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type Answers, type Argument } from "../../tracee/program.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import type { Probe } from "../probe.ts";

/** What a thread has registered, as in `thread_core`, and where it must go on if the stop aborts a critical section. */
export interface Registrations extends RobustList {
  readonly rseq_entry: RseqEntry;
  readonly abortAddress: number | undefined;
}

/** Reads robust list and rseq of a stopped thread from outside. Throws as `collectRseq` does. */
export function collectRegistrations(tracee: Tracee, ip: number): Registrations {
  const { entry, abortAddress } = collectRseq(tracee, ip);
  return { ...collectRobustList(tracee.tid), rseq_entry: entry, abortAddress };
}

/** Registers all three again, for the thread that runs the program: when its memory is there. */
export function restoreRegistrations(
  program: Program,
  core: RobustList & Pick<ThreadCoreEntry, "rseq_entry">,
  clearTidAddress: bigint,
): void {
  restoreClearTidAddress(program, clearTidAddress);
  restoreRobustList(program, core);
  if (core.rseq_entry !== undefined) restoreRseq(program, core.rseq_entry);
}

/** The robust list, as in `thread_core`. */
export type RobustList = Pick<ThreadCoreEntry, "futex_rla" | "futex_rla_len">;

/** Reads the robust list of a thread from outside: address 0 when it has none. Throws SYSCALL. */
export function collectRobustList(tid: number): RobustList {
  const program = new Program();
  const list = lookAtRobustList(program, tid);
  return list(runHere(program));
}

/** Adds the call of the engine that looks at a thread's robust list; what reads the answer throws SYSCALL. */
export function lookAtRobustList(
  program: Program,
  tid: Argument,
): (answers: Answers) => RobustList {
  const head = program.output(8, 8);
  const length = program.output(8, 8);
  const asked = program.call("get_robust_list", [tid, head, length], { mayFail: true });
  return (answers) => {
    const result = answers.value(asked);
    if (result < 0) throw syscallError("get_robust_list", -result, "look at a thread");
    return {
      futex_rla: answers.word(head),
      // Of 64 bits: a size_t.
      futex_rla_len: Number(answers.word(length)),
    };
  };
}

/** Sets the robust list of the thread that runs the program. */
function restoreRobustList(program: Program, { futex_rla, futex_rla_len }: RobustList): void {
  if (futex_rla_len === 0) return;
  program.call("set_robust_list", [futex_rla, futex_rla_len], { label: "set the robust list" });
}

/** The rseq registration of a stopped thread. */
export interface CollectedRseq {
  /** In the form of the image: address 0 when there is none. */
  readonly entry: RseqEntry;
  /** Where the thread must go on: it stands in a critical section, which the stop aborts. */
  readonly abortAddress: number | undefined;
}

/**
 * Reads the rseq registration of a stopped thread, and whether it stands in a critical section. `ip` is where the thread
 * stands in its own code. Sections that must not be restarted by signals keep their place and their descriptor.
 *
 * @throws RepriseError UNSUPPORTED for a descriptor of an unknown version, SYSCALL
 */
export function collectRseq(tracee: Tracee, ip: number): CollectedRseq {
  const { pointer = 0, size = 0, signature = 0 } = tracee.rseqConfiguration() ?? {};
  const entry = { rseq_abi_pointer: BigInt(pointer), rseq_abi_size: size, signature };
  const section = pointer === 0 ? undefined : readCriticalSection(tracee, pointer);
  if (section === undefined || ip < section.start || ip >= section.start + section.length) {
    return { entry, abortAddress: undefined };
  }
  return (section.flags & RSEQ_CS_FLAG_NO_RESTART_ON_SIGNAL) === 0
    ? { entry, abortAddress: section.abort }
    : { entry: { ...entry, rseq_cs_pointer: BigInt(section.address) }, abortAddress: undefined };
}

/** Registers the rseq area of the thread that runs the program; the kernel writes into it when the thread goes on. */
export function restoreRseq(program: Program, entry: RseqEntry): void {
  if (entry.rseq_abi_pointer === 0n) return;
  program.call("rseq", [entry.rseq_abi_pointer, entry.rseq_abi_size, 0, entry.signature], {
    label: "register the area for restartable sequences",
    hint: "EINVAL: the area was registered with a size that this kernel does not take. Restore on the kernel of the dump.",
  });
}

/**
 * The word of the thread's memory that is to be written after the registration, which clears it; undefined for almost
 * every thread.
 */
export function rseqSectionWord(entry: RseqEntry): { address: number; value: bigint } | undefined {
  const { rseq_cs_pointer: value } = entry;
  return value === undefined || value === 0n
    ? undefined
    : { address: Number(entry.rseq_abi_pointer) + RSEQ_CS_OFFSET, value };
}

/** Asks a thread for the address of the word that is cleared when it ends; 0 for none. */
export function probeClearTidAddress(program: Program): Probe<bigint> {
  const place = program.output(8, 8);
  program.call("prctl", [PR_GET_TID_ADDRESS, place, 0, 0, 0], {
    label: "read the address that is cleared at exit",
    hint: "The kernel needs CONFIG_CHECKPOINT_RESTORE.",
  });
  return (result) => result.bytes(place, 8).readBigUInt64LE(0);
}

/** Sets the address of the word that is cleared when the thread that runs the program ends. */
export function restoreClearTidAddress(program: Program, address: bigint): void {
  program.call("set_tid_address", [address], { label: "set the address that is cleared at exit" });
}

/** struct rseq_cs: what the thread is in, or was lately. */
interface CriticalSection {
  readonly address: number;
  readonly flags: number;
  readonly start: number;
  readonly length: number;
  readonly abort: number;
}

function readCriticalSection(tracee: Tracee, rseq: number): CriticalSection | undefined {
  const word = Buffer.alloc(8);
  readMemory(tracee.leader, [{ address: rseq + RSEQ_CS_OFFSET, length: word.length }], word);
  const address = Number(word.readBigUInt64LE(0));
  if (address === 0) return undefined;
  const bytes = Buffer.alloc(RSEQ_CS_SIZE);
  readMemory(tracee.leader, [{ address, length: bytes.length }], bytes);
  const version = bytes.readUInt32LE(0);
  if (version !== 0) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump thread ${tracee.tid}: its restartable sequence has version ${version}`,
      { pid: tracee.leader, hint: "Only version 0 of struct rseq_cs is known." },
    );
  }
  const at = (offset: number): number => Number(bytes.readBigUInt64LE(offset));
  return { address, flags: bytes.readUInt32LE(4), start: at(8), length: at(16), abort: at(24) };
}
