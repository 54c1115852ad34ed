// Seccomp: a thread in strict mode, or with a chain of filters that every system call passes; seccomp(2), kernel/seccomp.c. The
// kernel gives filters out to a tracer that itself is free of them and has CAP_SYS_ADMIN (PTRACE_SECCOMP_GET_FILTER), the oldest
// first.
//
// At restore filters are installed while the thread is still root, oldest first. They do nothing while we trace it: all
// tracees have PTRACE_O_SUSPEND_SECCOMP, which ends when they are let go. seccomp.img holds chains in which `prev` leads, despite
// its name, to the next newer filter.

import { RepriseError } from "../../errors.ts";
import {
  SeccompMode,
  type SeccompEntry,
  type SeccompFilter,
  type ThreadCoreEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import type { Program } from "../../tracee/program.ts";
import type { SeccompProgram } from "../../tracee/tracee.ts";
import type { FrozenTask, FrozenThread } from "./task.ts";

/** Operations and flags of seccomp(2) (include/uapi/linux/seccomp.h). */
const SECCOMP_SET_MODE_STRICT = 0;
const SECCOMP_SET_MODE_FILTER = 1;
const SECCOMP_FILTER_FLAG_TSYNC = 1;

/** Size of a struct sock_filter. */
const INSTRUCTION_SIZE = 8;

type SeccompPart = Pick<ThreadCoreEntry, "seccomp_mode" | "seccomp_filter">;

/** The seccomp modes and filters of all threads of a tree. */
export class SeccompTable {
  readonly #filters: SeccompFilter[] = [];
  /** Index of a chain's oldest filter, by the chain's content. */
  readonly #chains = new Map<string, number>();
  readonly #threads = new Map<number, SeccompPart>();

  /**
   * Takes the modes and filters of a frozen task's threads.
   *
   * @throws RepriseError UNSUPPORTED for filters that the kernel does not give out
   */
  add(task: FrozenTask): void {
    const modes = task.threads.map(({ status }) => status.seccomp ?? 0);
    if (modes.every((mode) => mode === SeccompMode.disabled)) return;
    const chains = task.threads.map((thread, index) =>
      modes[index] === SeccompMode.filter ? readChain(task, thread) : [],
    );
    const isSame =
      chains.length > 1 &&
      modes.every((mode) => mode === SeccompMode.filter) &&
      chains.every((chain) => chainKey(chain, 0) === chainKey(chains[0] ?? [], 0));
    task.threads.forEach(({ tid }, index) => {
      const mode = modes[index] ?? SeccompMode.disabled;
      if (mode === SeccompMode.disabled || (isSame && index > 0)) return;
      // One chain for all threads: the leader's, which takes the others along.
      const flags = isSame ? SECCOMP_FILTER_FLAG_TSYNC : 0;
      this.#threads.set(tid, {
        seccomp_mode: mode,
        ...(mode === SeccompMode.filter
          ? { seccomp_filter: this.#store(chains[index] ?? [], flags) }
          : {}),
      });
    });
  }

  /** What the core image of a thread says. */
  thread(tid: number): SeccompPart {
    return this.#threads.get(tid) ?? {};
  }

  /** seccomp.img. */
  entry(): SeccompEntry {
    return { seccomp_filters: this.#filters };
  }

  #store(chain: readonly SeccompProgram[], flags: number): number {
    const key = chainKey(chain, flags);
    const known = this.#chains.get(key);
    if (known !== undefined) return known;
    const first = this.#filters.length;
    this.#chains.set(key, first);
    chain.forEach((program, index) => {
      this.#filters.push({
        filter: program.instructions,
        flags: program.flags | flags,
        ...(index + 1 < chain.length ? { prev: first + index + 1 } : {}),
      });
    });
    return first;
  }
}

function readChain(task: FrozenTask, { stopped, tid }: FrozenThread): SeccompProgram[] {
  const chain: SeccompProgram[] = [];
  for (;;) {
    const program = stopped.tracee.seccompFilter(chain.length);
    if (program === undefined) break;
    chain.push(program);
  }
  if (chain.some(asksSupervisor)) {
    log.loss(
      `pid ${task.pid} (${task.stat.comm}): a seccomp filter of thread ${tid} asks a supervisor outside, which the restored one does not have: such calls fail with ENOSYS`,
    );
  }
  if (chain.length > 0) return chain;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump pid ${task.pid} (${task.stat.comm}): the kernel does not tell the seccomp filters of thread ${tid}`,
    {
      pid: task.pid,
      hint: "Reading filters needs CONFIG_CHECKPOINT_RESTORE, and a checkpoint that itself runs as root and free of seccomp.",
    },
  );
}

/** BPF_RET | BPF_K, with SECCOMP_RET_USER_NOTIF as the action. */
const RETURN_CONSTANT = 0x06;
const SECCOMP_RET_ACTION_FULL = 0xffff0000;
const SECCOMP_RET_USER_NOTIF = 0x7fc00000;

/** The kernel does not tell whether anybody listens: a listener in the tree itself is refused as an open file. */
function asksSupervisor({ instructions }: SeccompProgram): boolean {
  const code = Buffer.from(instructions.buffer, instructions.byteOffset, instructions.length);
  for (let at = 0; at < code.length; at += INSTRUCTION_SIZE) {
    const action = (code.readUInt32LE(at + 4) & SECCOMP_RET_ACTION_FULL) >>> 0;
    if (code.readUInt16LE(at) === RETURN_CONSTANT && action === SECCOMP_RET_USER_NOTIF) return true;
  }
  return false;
}

function chainKey(chain: readonly SeccompProgram[], flags: number): string {
  const parts = chain.map(
    (program) => `${program.flags | flags}:${Buffer.from(program.instructions).toString("base64")}`,
  );
  return parts.join();
}

/**
 * Adds the calls that install a thread's filters. The thread must be root, and traced with PTRACE_O_SUSPEND_SECCOMP until
 * everything else is done.
 */
export function restoreSeccomp(
  program: Program,
  part: SeccompPart,
  { filters, tid }: { readonly filters: readonly SeccompFilter[]; readonly tid: number },
): void {
  const mode = part.seccomp_mode ?? SeccompMode.disabled;
  if (mode === SeccompMode.strict) {
    program.call("seccomp", [SECCOMP_SET_MODE_STRICT, 0, 0], {
      label: `put thread ${tid} into strict seccomp mode`,
    });
  }
  if (mode !== SeccompMode.filter) return;
  for (let index = part.seccomp_filter; index !== undefined; index = filters[index]?.prev) {
    installFilter(program, filters[index] as SeccompFilter, tid);
  }
}

/** struct sock_fprog: u16 length, then the address of the instructions. */
const FPROG_SIZE = 16;
const FPROG_FILTER = 8;

function installFilter(program: Program, { filter, flags = 0 }: SeccompFilter, tid: number): void {
  const fprog = Buffer.alloc(FPROG_SIZE);
  fprog.writeUInt16LE(filter.length / INSTRUCTION_SIZE, 0);
  const pointer = program.structure(fprog, { [FPROG_FILTER]: program.data(filter) });
  program.call("seccomp", [SECCOMP_SET_MODE_FILTER, flags, pointer], {
    label: `install a seccomp filter in thread ${tid}`,
    expect: 0,
    hint: "Filters are installed as root, by a restore that itself is free of seccomp.",
  });
}
