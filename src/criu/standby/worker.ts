// A resident engine: it has done everything once before it says that it is ready, so that V8 has compiled it, and then does what
// commands ask, one after the other. It ends as soon as it is not as it was before a command.

import { readlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { reapingDone } from "../../engine/wait-exit.ts";
import { readFdNumbers } from "../../proc/fd.ts";
import { readNamespaces } from "../../proc/ns.ts";
import { PR_SET_PDEATHSIG } from "../../sys/abi/sched.ts";
import { F_SETFD, FD_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { SIGKILL } from "../../sys/abi/signal.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { collectYoungObjects } from "../../sys/young-objects.ts";
import { prepareCounting } from "../../tracee/executions.ts";
import { runCommand } from "../run.ts";
import { fits } from "./fits.ts";
import { takePlace, whyUnlike } from "./place.ts";
import { COLD, FIRST_OWN_FD, KEEPER_STDERR, type Report, type Request } from "./protocol.ts";
import { warmUp } from "./warm-up.ts";

/** After so many commands another one takes its place: what grows slowly unseen does not grow for ever. */
const MOST_COMMANDS = 500;

/** Serves until the keeper ends it: `standby-worker DIRECTORY`, which is its slot's. */
export async function work([slot = ""]: readonly string[]): Promise<number> {
  // Half-done work ends with the keeper, as with any engine that is killed.
  syscall("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  // What the keeper's starter left open is not for tasks.
  for (const fd of readFdNumbers(process.pid)) trySyscall("fcntl", fd, F_SETFD, FD_CLOEXEC);
  await warmUp(join(slot, "warm-up"));
  // Kept open.
  await prepareCounting();
  await collectYoungObjects();
  const before = ownState();
  let commands = 0;
  process.on("uncaughtException", dieLoudly);
  process.on("message", (request: Request) => void serve(request));
  report({ kind: "ready" });
  return new Promise(() => undefined);

  async function serve(request: Request): Promise<void> {
    report({ kind: "answer", ...(await standIn(request)) });
    await reapingDone();
    commands += 1;
    const why = commands < MOST_COMMANDS ? difference(before, ownState()) : "it is old";
    if (why === undefined) {
      await collectYoungObjects();
      report({ kind: "ready" });
    } else {
      report({ kind: "retires", why });
      process.disconnect();
    }
  }
}

/** The command's own standard error may not be there any more. */
function dieLoudly(error: Error): void {
  writeSync(KEEPER_STDERR, `an engine failed: ${error.stack ?? error.message}\n`);
  process.exit(1);
}

/** Does what a command asks. */
async function standIn(request: Request): Promise<{ text: string; refused?: string }> {
  const unlike = whyUnlike(request);
  if (unlike !== undefined) return { text: COLD, refused: unlike };
  const place = takePlace(request);
  try {
    if (!fits(place.args)) return { text: COLD, refused: "it is for a process of its own" };
    return { text: String(await runCommand(place.args, () => undefined)) };
  } finally {
    place.giveBack();
  }
}

function report(text: Report): void {
  if (process.connected) process.send?.(text);
}

type State = ReadonlyMap<string, string>;

/** What of this process a command may have changed and not put back. */
function ownState(): State {
  const fds = readFdNumbers(process.pid).flatMap((fd): [string, string][] => {
    const target = fd < FIRST_OWN_FD ? undefined : linkOf(fd);
    return target === undefined ? [] : [[`fd ${fd}`, target]];
  });
  const namespaces = Object.entries(readNamespaces(process.pid)).map(
    ([kind, inode]): [string, string] => [`${kind} namespace`, String(inode)],
  );
  return new Map([...fds, ...namespaces]);
}

/** Not of the directory that is being read. */
function linkOf(fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
}

function difference(before: State, after: State): string | undefined {
  for (const name of new Set([...before.keys(), ...after.keys()]))
    if (before.get(name) !== after.get(name))
      return `${name}: ${before.get(name) ?? "nothing"}, now ${after.get(name) ?? "nothing"}`;
  return undefined;
}
