// In whose place the engine works. A resident engine (criu/standby) does what a command asks that stays in front of it: tasks are
// to be children of that command, in its cgroup and with its limits, as if it were the engine itself.

let front: number | undefined;

/** The process whose children restored tasks become: the command that is served, or the engine itself. */
export function frontPid(): number {
  return front ?? process.pid;
}

/** Whether the engine works in the place of another process. */
export function isStandIn(): boolean {
  return front !== undefined;
}

/** The engine, and the command that it serves: neither may be frozen. */
export function ownPids(): readonly number[] {
  return front === undefined ? [process.pid] : [process.pid, front];
}

/** Works in the place of another process from now on, or of nobody. */
export function standInFor(pid: number | undefined): void {
  front = pid;
}
