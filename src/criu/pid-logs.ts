// --log-pid: beside the log a file for every restored process, LOG.PID, with the pid that the process has in its own namespace. In
// it stand the system calls that the process made while it was restored.

import { openSync, writeSync } from "node:fs";
import { readStatusIfAlive } from "../proc/status.ts";
import { tellPrograms } from "../tracee/run.ts";

/** Writes the files, until the end of this process. */
export function logPerPid(logFile: string): void {
  const files = new Map<number, number>();
  const fileOf = (leader: number): number => {
    let fd = files.get(leader);
    if (fd === undefined) {
      const pid = readStatusIfAlive(leader)?.nsTgid.at(-1) ?? leader;
      files.set(leader, (fd = openSync(`${logFile}.${pid}`, "w", 0o600)));
    }
    return fd;
  };
  tellPrograms(({ leader, tid, program, result, entries }) => {
    const head = `a program of ${program.calls} calls in thread ${tid}:`;
    const lines = program.explain({ result, entries }).map((line) => `  ${line}`);
    writeSync(fileOf(leader), [head, ...lines, ""].join("\n"));
  });
}
