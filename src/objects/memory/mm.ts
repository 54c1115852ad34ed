// The address space as a whole: where code, data, stack, heap, arguments and environment lie (prctl(2) PR_SET_MM_MAP), the
// auxiliary vector and the executable; CRIU's mm_entry.

import type { MmEntry, VmaEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { readAuxv } from "../../proc/auxv.ts";
import { PR_SET_MM, PR_SET_MM_MAP } from "../../sys/abi/sched.ts";
import { readText } from "../../sys/files.ts";
import { writeU64 } from "../../sys/memory.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { ProcessAttributes } from "../task/attributes.ts";
import type { FrozenTask } from "../task/task.ts";
import { aioEntries } from "./aio.ts";

/** An entry of a task that has no memory of its own. */
export const EMPTY_MM = {
  mm_start_code: 0,
  mm_end_code: 0,
  mm_start_data: 0,
  mm_end_data: 0,
  mm_start_stack: 0,
  mm_start_brk: 0,
  mm_brk: 0,
  mm_arg_start: 0,
  mm_arg_end: 0,
  mm_env_start: 0,
  mm_env_end: 0,
  exe_file_id: 0,
  mm_saved_auxv: [],
  vmas: [],
  aios: [],
} as const;

/** Words of the auxiliary vector that CRIU 4.2 takes on x86-64. */
const CRIU_AUXV_WORDS = 44;

/** Makes the entry of a task's address space. */
export function mmEntry(
  task: FrozenTask,
  probed: Pick<ProcessAttributes, "brk" | "dumpable" | "thpDisabled" | "mdwe">,
  parts: {
    readonly exeId: number;
    readonly vmas: readonly VmaEntry[];
    /** MCL_ flags. */
    readonly futureLocks: number;
    readonly ldt?: Uint8Array;
  },
): MmEntry {
  const { stat } = task;
  warnOfManyAreas(task, parts.vmas.length);
  const auxv = readAuxv(task.pid).flatMap(({ key, value }) => [key, value]);
  return {
    mm_start_code: stat.startCode,
    mm_end_code: stat.endCode,
    mm_start_data: stat.startData,
    mm_end_data: stat.endData,
    mm_start_stack: stat.startStack,
    mm_start_brk: stat.startBrk,
    mm_arg_start: stat.argStart,
    mm_arg_end: stat.argEnd,
    mm_env_start: stat.envStart,
    mm_env_end: stat.envEnd,
    exe_file_id: parts.exeId,
    mm_saved_auxv: auxv.slice(0, CRIU_AUXV_WORDS),
    vmas: parts.vmas,
    aios: aioEntries(parts.vmas),
    mm_brk: probed.brk,
    dumpable: probed.dumpable,
    thp_disabled: probed.thpDisabled,
    reprise: {
      saved_auxv: auxv,
      mdwe: probed.mdwe,
      ...(parts.futureLocks === 0 ? {} : { def_flags_mlock: parts.futureLocks }),
      ...(parts.ldt === undefined ? {} : { ldt: parts.ldt }),
    },
  };
}

/** What a restore needs beside those of the process itself: for the work area, and while others are changed. */
const MORE_AREAS = 16;
/** The limit of a kernel is never less. */
const MANY_AREAS = 4096;

/** A process has one area more than it had, for a while, when it comes back; a limit that it has reached can be raised. */
function warnOfManyAreas(task: FrozenTask, count: number): void {
  if (count < MANY_AREAS) return;
  const text = readText("/proc/sys/vm/max_map_count");
  const limit = typeof text === "string" ? Number(text) : count;
  if (count + MORE_AREAS <= limit) return;
  log.warn(
    `pid ${task.innerPid} has ${count} areas of memory, of at most ${limit}: a restore may need some more. Raise vm.max_map_count to ${count + MORE_AREAS} for it (sysctl)`,
  );
}

/** struct prctl_mm_map: eleven addresses, the auxiliary vector with its size, the executable's descriptor. */
const PRCTL_MM_MAP_SIZE = 104;
const MM_MAP_AUXV = 88;
const MM_MAP_AUXV_SIZE = 96;
const MM_MAP_EXE_FD = 100;

/**
 * Adds the call that sets all addresses, the auxiliary vector and the executable at once. The old executable must not be
 * mapped any more.
 */
export function restoreMm(program: Program, mm: MmEntry, exeFd: number): void {
  const auxv = mm.reprise?.saved_auxv ?? mm.mm_saved_auxv;
  const auxvBytes = Buffer.alloc(auxv.length * 8);
  auxv.forEach((word, index) => auxvBytes.writeBigUInt64LE(word, index * 8));
  const map = Buffer.alloc(PRCTL_MM_MAP_SIZE);
  [
    mm.mm_start_code,
    mm.mm_end_code,
    mm.mm_start_data,
    mm.mm_end_data,
    mm.mm_start_brk,
    mm.mm_brk,
    mm.mm_start_stack,
    mm.mm_arg_start,
    mm.mm_arg_end,
    mm.mm_env_start,
    mm.mm_env_end,
  ].forEach((address, index) => writeU64(map, index * 8, address));
  map.writeUInt32LE(auxvBytes.length, MM_MAP_AUXV_SIZE);
  map.writeInt32LE(exeFd, MM_MAP_EXE_FD);
  const pointer: Argument = program.structure(
    map,
    auxvBytes.length === 0 ? {} : { [MM_MAP_AUXV]: program.data(auxvBytes) },
  );
  program.call("prctl", [PR_SET_MM, PR_SET_MM_MAP, pointer, PRCTL_MM_MAP_SIZE, 0], {
    label: "restore the address space's layout and executable",
    hint: "The kernel needs CONFIG_CHECKPOINT_RESTORE for PR_SET_MM_MAP.",
  });
}
