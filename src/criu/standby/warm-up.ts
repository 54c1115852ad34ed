// What a resident engine does before it takes commands: it saves and restores a small tree, and what a container is to the kernel,
// until V8 has compiled what that takes. Both are its own, and end with this.

import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { readChildrenIfAlive } from "../../proc/children.ts";
import { SIGKILL } from "../../sys/abi/signal.ts";
import { spawnProgram } from "../../sys/ffi.ts";
import { standInFor } from "../../sys/front.ts";
import { sendSignal, waitFor } from "../../sys/process.ts";
import { restartLog } from "../log-file.ts";
import { runCommand } from "../run.ts";

const ROUNDS = 40;

/** What a container is to the kernel. */
const NAMESPACES = "-m -p -f -n -i -u --kill-child";
// oxfmt-ignore
const CONTAINER = "mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs tmpfs /mnt; exec sleep 60";

/** What is killed in the middle of this takes all of these along, as they are and as they were restored: their parent is gone then. */
const MORTAL = "setpriv --pdeathsig KILL";

/**
 * Runs the rounds. A machine that does not allow them only makes the first commands slower.
 *
 * @param scratch a directory for their images, which is made and removed
 */
export async function warmUp(scratch: string): Promise<void> {
  rmSync(scratch, { recursive: true, force: true }); // of one that was killed
  mkdirSync(scratch, { mode: 0o700 });
  const front = start(`exec ${MORTAL} sleep 60`);
  const tree = start(`exec ${MORTAL} sh -c '${MORTAL} sleep 60 & wait'`);
  const outer = start(`exec ${MORTAL} unshare ${NAMESPACES} setsid sh -c '${CONTAINER}'`);
  try {
    await settled();
    const [inner] = readChildrenIfAlive(outer) ?? [];
    await rounds(scratch, front, { name: "tree", pid: tree, options: [[], []] });
    await rounds(scratch, front, {
      name: "container",
      pid: inner,
      options: [EXTERNAL, ["--root", "/", ...EXTERNAL]],
    });
  } finally {
    end(outer);
    end(front);
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Not by Node, which would wake up at every stop of a task from then on, to see whether a child has ended (SIGCHLD). */
function start(script: string): number {
  return spawnProgram("/bin/sh", ["sh", "-c", `exec </dev/null >/dev/null 2>&1; ${script}`]);
}

const EXTERNAL = ["--external", "mnt[]"];

interface Pupil {
  readonly name: string;
  readonly pid: number | undefined;
  /** Of dump and restore. */
  readonly options: readonly [readonly string[], readonly string[]];
}

/** Saves and restores a process again and again, and ends it. */
async function rounds(scratch: string, front: number, pupil: Pupil): Promise<void> {
  let { pid } = pupil;
  for (let round = 0; round < ROUNDS && pid !== undefined; round++)
    pid = await saveAndRestore(join(scratch, `${pupil.name}-${round}`), { ...pupil, pid, front });
  for (const child of readChildrenIfAlive(pid ?? 0) ?? []) sendSignal(child, SIGKILL);
  end(pid);
}

async function saveAndRestore(
  directory: string,
  { pid, options, front }: Pupil & { readonly front: number },
): Promise<number | undefined> {
  mkdirSync(directory, { mode: 0o700 });
  const common = ["-v4", "-D", directory, "-o", "log"];
  standInFor(front);
  try {
    const dumped = await run(["dump", ...common, "-t", String(pid), ...options[0]]);
    if (dumped !== 0) return pid;
    // The tree was a child of ours: nobody else reaps it.
    waitFor(pid ?? 0, { noHang: true });
    const pidfile = join(directory, "pid");
    const words = ["restore", ...common, "-d", "--restore-sibling", "--pidfile", pidfile];
    const status = await run([...words, ...options[1]]);
    return status === 0 ? Number(readFileSync(pidfile, "utf8")) : undefined;
  } finally {
    standInFor(undefined);
  }
}

async function run(words: readonly string[]): Promise<number> {
  const status = await runCommand(words, () => undefined);
  restartLog();
  process.chdir("/");
  return status;
}

const SETTLE_MS = 300;

/** Until shells have started what they start. */
function settled(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
}

/** Ends a child, or what unshare will end itself. */
function end(pid: number | undefined): void {
  if (pid === undefined) return;
  sendSignal(pid, SIGKILL);
  waitFor(pid);
}
