// Settings of prctl(2) that few programs have and that no other room knows: what happens at a machine check, whether the time
// stamp counter may be read, which speculation the processor is kept from, whether the task writes back for others
// (PR_SET_IO_FLUSHER), and whether its equal pages are merged (PR_SET_MEMORY_MERGE). An image holds the calls that give
// back those that are not as the kernel has them by default. See kernel/sys.c and Documentation/userspace-api/spec_ctrl.rst.

import type { ReprisePrctl, VmaEntry } from "../../images/schema/messages.generated.ts";
import {
  PR_GET_IO_FLUSHER,
  PR_GET_MEMORY_MERGE,
  PR_GET_SPECULATION_CTRL,
  PR_GET_THP_DISABLE,
  PR_GET_TSC,
  PR_MCE_KILL,
  PR_MCE_KILL_DEFAULT,
  PR_MCE_KILL_GET,
  PR_MCE_KILL_SET,
  PR_SET_IO_FLUSHER,
  PR_SET_MEMORY_MERGE,
  PR_SET_SPECULATION_CTRL,
  PR_SET_THP_DISABLE,
  PR_SET_TSC,
  PR_SPECULATIONS,
  PR_SPEC_PRCTL,
  PR_THP_DISABLE_EXCEPT_ADVISED,
  PR_TSC_SIGSEGV,
} from "../../sys/abi/sched.ts";
import { MADV_MERGEABLE, MADV_UNMERGEABLE, TASK_SIZE } from "../../sys/abi/mman.ts";
import { VMA_GUARD } from "../memory/vma.ts";
import { errnoName } from "../../sys/errno.ts";
import type { Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

/** Asks a thread for the settings that it has made; whether pages are merged is the whole process's, told by the leader. */
export function probeSettings(
  program: Program,
  { isLeader }: { readonly isLeader: boolean },
): Probe<readonly ReprisePrctl[]> {
  const ask = (option: number, argument: Parameters<Program["call"]>[1][number] = 0) =>
    program.call("prctl", [option, argument, 0, 0, 0], {
      label: `read the setting ${option}`,
      mayFail: true,
    });
  const machineCheck = ask(PR_MCE_KILL_GET);
  const counter = program.output(4, 4);
  ask(PR_GET_TSC, counter);
  const speculations = PR_SPECULATIONS.map(
    (which) => [which, ask(PR_GET_SPECULATION_CTRL, which)] as const,
  );
  const flusher = ask(PR_GET_IO_FLUSHER);
  const hugePages = isLeader ? ask(PR_GET_THP_DISABLE) : undefined;
  const merge = isLeader ? ask(PR_GET_MEMORY_MERGE) : undefined;
  return (result) => {
    const made: ReprisePrctl[] = [];
    const keep = (option: number, arg2: number, arg3: number = 0): void =>
      void made.push({ option, arg2: BigInt(arg2), arg3: BigInt(arg3) });
    const policy = result.value(machineCheck);
    if (policy >= 0 && policy !== PR_MCE_KILL_DEFAULT) keep(PR_MCE_KILL, PR_MCE_KILL_SET, policy);
    if (result.bytes(counter, 4).readInt32LE(0) === PR_TSC_SIGSEGV)
      keep(PR_SET_TSC, PR_TSC_SIGSEGV);
    for (const [which, asked] of speculations) {
      const state = result.value(asked);
      // Without this bit it is the machine's to say.
      if (state > 0 && (state & PR_SPEC_PRCTL) !== 0 && (state & SPEC_RESTRICTED) !== 0)
        keep(PR_SET_SPECULATION_CTRL, which, state & SPEC_RESTRICTED);
    }
    if (result.value(flusher) > 0) keep(PR_SET_IO_FLUSHER, 1);
    // Plainly off is a field of the format.
    if (
      hugePages !== undefined &&
      (result.value(hugePages) & THP_EXCEPT_ADVISED) === THP_EXCEPT_ADVISED
    )
      keep(PR_SET_THP_DISABLE, 1, PR_THP_DISABLE_EXCEPT_ADVISED);
    if (merge !== undefined && result.value(merge) > 0) keep(PR_SET_MEMORY_MERGE, 1);
    return made;
  };
}

/** PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE and PR_SPEC_DISABLE_NOEXEC, of which one holds. */
const SPEC_RESTRICTED = 0b1_1100;

/** Off, but for memory that is advised otherwise (MADV_HUGEPAGE), from Linux 6.18 on. */
const THP_EXCEPT_ADVISED = 1 | PR_THP_DISABLE_EXCEPT_ADVISED;

/** The calls that an image may ask for. */
const SETTERS: readonly number[] = [
  PR_MCE_KILL,
  PR_SET_TSC,
  PR_SET_SPECULATION_CTRL,
  PR_SET_IO_FLUSHER,
  PR_SET_MEMORY_MERGE,
  PR_SET_THP_DISABLE,
];

/** Makes the settings anew, before the credentials. Returns a probe of what could not be set, a sentence each. */
export function restoreSettings(
  program: Program,
  settings: readonly ReprisePrctl[] = [],
): Probe<string[]> {
  const calls = settings
    .filter(({ option }) => SETTERS.includes(option))
    .map(({ option, arg2, arg3 }) => {
      const label = `make the setting ${option} (prctl)`;
      const args = [option, Number(arg2), Number(arg3), 0, 0];
      return [label, program.call("prctl", args, { label, mayFail: true })] as const;
    });
  return (result) =>
    calls.flatMap(([label, call]) => {
      const value = result.value(call);
      return value < 0 ? [`cannot ${label}: prctl: ${errnoName(-value)}`] : [];
    });
}

/** Adds the calls that take out areas again which a process that merges its equal pages has taken out (MADV_UNMERGEABLE). */
export function restoreUnmerged(
  program: Program,
  settings: readonly ReprisePrctl[],
  areas: readonly Pick<VmaEntry, "start" | "end" | "madv" | "status">[],
): void {
  if (!settings.some(({ option, arg2 }) => option === PR_SET_MEMORY_MERGE && arg2 === 1n)) return;
  for (const { start, end, status, madv = 0n } of areas) {
    if ((madv & (1n << BigInt(MADV_MERGEABLE))) !== 0n || start > TASK_SIZE) continue;
    // A range of guard pages is a part of an area, and has no marks of its own.
    if ((status & VMA_GUARD) !== 0) continue;
    // Most of those without the mark cannot be merged anyway.
    const label = `take memory ${start.toString(16)}-${end.toString(16)} out of merging`;
    program.call("madvise", [start, end - start, MADV_UNMERGEABLE], { label, mayFail: true });
  }
}
