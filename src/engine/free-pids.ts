// A tree comes back with its own pids, so they must be free: as pid, thread, process group and session. The dead of the tree
// may not have been reaped yet (init takes its time), so they are given a moment.

import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { readPidUsage } from "../proc/pid-usage.ts";
import { readStatIfAlive, type TaskStat } from "../proc/stat.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import { F_OWNER_PID, F_SETOWN_EX, O_CLOEXEC } from "../sys/abi/fcntl.ts";
import { PF_EXITING } from "../sys/abi/sched.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { ESRCH } from "../sys/errno.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import type { RestorePlan } from "./plan.ts";
import { reapAfterNode } from "./wait-exit.ts";

/** How long zombies that still hold a number are waited for. */
export const ZOMBIE_PATIENCE_MS = 5_000;
const POLL_MS = 10;
/** By then Node, or who waits for a restored tree, has reaped it. Orphans that have come to us (a subreaper, or pid 1) nobody else reaps. */
const OTHERS_MS = 200;
/** For a moment a killed process has neither the signal any more nor the mark of one that exits. */
const CONFIRM_MS = 50;

/**
 * Waits until all pids of a plan are free.
 *
 * @param options.thorough do not trust the first look, which does not see a number that only a session has
 * @throws RepriseError PID_TAKEN naming who holds one.
 */
export async function waitForFreePids(
  plan: RestorePlan,
  options: { readonly thorough?: boolean } = {},
): Promise<void> {
  const wanted = new Set(plan.tree.nodes.map(({ pid }) => pid));
  for (const task of plan.tasks.values()) for (const { tid } of task.threads) wanted.add(tid);
  using numbers = new Numbers();
  const areFree = (): boolean => [...wanted].every((number) => numbers.isFree(number));
  if (options.thorough !== true && areFree()) return;
  let deadline = performance.now() + ZOMBIE_PATIENCE_MS;
  const begun = performance.now();
  let livingSince: number | undefined;
  let told = false;
  for (;;) {
    const holders = [...readPidUsage(wanted)].flatMap(([number, held]) =>
      held.map((holder) => ({ number, ...holder })),
    );
    const first = holders[0];
    if (first === undefined) {
      // Of one that has just been reaped the number may not be free yet.
      if (areFree() || performance.now() > deadline) return;
      await new Promise((resolve) => setTimeout(resolve, 1));
      continue;
    }
    const living = holders.find(({ pid }) => isLiving(pid));
    // Who is still giving back its memory may need long for it, but will come to its end.
    if (living === undefined && holders.some(({ pid }) => !isZombie(pid)))
      deadline = performance.now() + ZOMBIE_PATIENCE_MS;
    livingSince = living === undefined ? undefined : (livingSince ?? performance.now());
    const isConfirmed = livingSince !== undefined && performance.now() - livingSince > CONFIRM_MS;
    if (isConfirmed || performance.now() > deadline) {
      const holder = living ?? first;
      throw new RepriseError(
        "PID_TAKEN",
        `cannot restore pid ${holder.number}: the number is taken as ${holder.role} by pid ${holder.pid} (${holder.comm})`,
        {
          pid: holder.number,
          hint: "Wait for that process to end, or restore into a new pid namespace (reprise clone does).",
        },
      );
    }
    if (!told) log.debug(`waiting for zombie ${first.pid} to be reaped: it holds ${first.number}`);
    told = true;
    // A zombie keeps its number until it is reaped: before that there is no need to look at all processes again.
    const again = livingSince === undefined ? deadline : 0;
    do {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      // After a busy time the clock comes first, and what Node has to hear of its children later.
      if (performance.now() > begun + OTHERS_MS && isOurs(first.pid) && isZombie(first.pid))
        await reapAfterNode([first.pid]);
    } while (performance.now() <= again && isUnreaped(first.pid));
  }
}

/**
 * Tells which numbers are free by making them the signal owner of a file (fs/fcntl.c: f_setown_ex): that asks the table of numbers
 * itself, and not who has one. A process leaves it a moment after it was reaped; a session and a group keep theirs.
 */
class Numbers {
  readonly #fd = syscall("eventfd2", 0, O_CLOEXEC);
  readonly #owner = Buffer.alloc(8);

  isFree(number: number): boolean {
    this.#owner.writeInt32LE(F_OWNER_PID, 0);
    this.#owner.writeInt32LE(number, 4);
    return trySyscall("fcntl", this.#fd, F_SETOWN_EX, this.#owner) === -ESRCH;
  }

  [Symbol.dispose](): void {
    trySyscall("close", this.#fd);
  }
}

/** Neither a zombie nor reaped since it was seen, nor on its way there. */
function isLiving(pid: number): boolean {
  const stat = readStatIfAlive(pid);
  if (stat === undefined || hasEnded(stat)) return false;
  return (stat.flags & PF_EXITING) === 0 && !isKilled(pid);
}

/** A zombie, or reaped since it was seen. */
function isZombie(pid: number): boolean {
  const stat = readStatIfAlive(pid);
  return stat === undefined || hasEnded(stat);
}

function isUnreaped(pid: number): boolean {
  const stat = readStatIfAlive(pid);
  return stat !== undefined && hasEnded(stat);
}

function isOurs(zombie: number): boolean {
  return isUnreaped(zombie) && readStatIfAlive(zombie)?.ppid === process.pid;
}

function hasEnded({ state }: TaskStat): boolean {
  return state === "Z" || state === "X";
}

/** It has been killed, but has not got to it yet. */
function isKilled(pid: number): boolean {
  const status = readStatusIfAlive(pid);
  if (status === undefined) return true;
  return ((status.sigPnd | status.shdPnd) & (1n << BigInt(SIGKILL - 1))) !== 0n;
}
