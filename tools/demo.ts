// The demo: a shell loop that counts once a second is checkpointed, restored and cloned, and the clone is
// checkpointed and restored again. It shows the numbers as they come, and at the end proves from the logs
// that none was lost and none came twice. Everything lives in a directory of its own and is removed.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";

const REPRISE = join(import.meta.dirname, "..", "bin", "reprise");
const LOOP = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 1; done";
const WATCH_SECONDS = 4;

class DemoError extends Error {}

/** How many numbers of each task have been shown. */
const shown = new Map<string, number>();
const home = mkdtempSync(join(tmpdir(), "reprise-demo-"));

await main();

async function main(): Promise<void> {
  try {
    if (process.getuid?.() !== 0) throw new DemoError("the demo needs root");
    await show();
  } catch (error) {
    if (!(error instanceof DemoError)) throw error;
    say(`\nThe demo failed: ${error.message}`);
    process.exitCode = 1;
  } finally {
    for (const name of ["looper", "looper-clone"]) quietly(["rm", "--force", name]);
    rmSync(home, { recursive: true, force: true });
  }
}

async function show(): Promise<void> {
  title("A program counts, once a second");
  reprise("run", "--name", "looper", "--", "sh", "-c", LOOP);
  await watch("looper");

  title("Checkpoint: its state goes to files, and it ends");
  reprise("checkpoint", "looper");
  const atCheckpoint = numbers("looper");
  reprise("inspect", "looper");
  await setTimeout(2000);
  demand(
    numbers("looper").length === atCheckpoint.length,
    "looper still counted after its checkpoint",
  );

  title("Restore: it goes on where it was");
  reprise("restore", "looper");
  await watch("looper");
  demand(numbers("looper").length > atCheckpoint.length, "looper does not count after its restore");

  title("Clone: a second one goes on from the same moment, and the first is not disturbed");
  const before = numbers("looper").length;
  reprise("clone", "looper", "looper-clone");
  const after = numbers("looper").length;
  await watch("looper", "looper-clone");
  const first = numbers("looper-clone")[0];
  demand(first !== undefined, "the clone does not count");
  demand(
    first >= before && first <= after,
    `the clone began with ${first}, not within ${before}..${after}`,
  );

  title("Checkpoint the clone again; the first one counts on");
  reprise("checkpoint", "looper-clone");
  const cloneAtCheckpoint = numbers("looper-clone").length;
  await watch("looper");
  demand(
    numbers("looper-clone").length === cloneAtCheckpoint,
    "the clone counted after its checkpoint",
  );

  title("Restore the clone: its third life");
  reprise("restore", "looper-clone");
  await watch("looper", "looper-clone");
  demand(
    numbers("looper-clone").length > cloneAtCheckpoint,
    "the clone does not count after its restore",
  );
  reprise("ps");

  title("Proof");
  prove("looper", 0);
  prove("looper-clone", first);
}

/** Prints the numbers of some tasks as they come, side by side. */
async function watch(...names: readonly string[]): Promise<void> {
  const end = Date.now() + WATCH_SECONDS * 1000;
  while (Date.now() < end) {
    for (const [column, name] of names.entries()) {
      const fresh = numbers(name).slice(shown.get(name) ?? 0);
      shown.set(name, (shown.get(name) ?? 0) + fresh.length);
      for (const number of fresh) say(`  ${" ".repeat(24 * column)}${name}: ${number}`);
    }
    await setTimeout(100);
  }
}

function prove(name: string, first: number): void {
  const found = numbers(name);
  const wrong = found.findIndex((number, index) => number !== first + index);
  demand(wrong < 0, `${name}: number ${found[wrong]} where ${first + wrong} was due`);
  say(`${name}: ${found.length} numbers from ${first} to ${found.at(-1)}, none lost, none twice`);
}

/** The whole lines of a task's log. */
function numbers(name: string): number[] {
  const text = readFileSync(join(home, "tasks", name, "log"), "utf8");
  return text
    .slice(0, text.lastIndexOf("\n") + 1)
    .split("\n")
    .slice(0, -1)
    .map(Number);
}

function reprise(...args: readonly string[]): void {
  say(`$ reprise ${args.map((word) => (/[\s;$]/.test(word) ? `'${word}'` : word)).join(" ")}`);
  const { status } = run(args, "inherit");
  if (status !== 0) throw new DemoError(`reprise ${args[0]} ended with ${status}`);
}

function quietly(args: readonly string[]): void {
  run(args, "ignore");
}

function run(args: readonly string[], output: "inherit" | "ignore") {
  const env = { ...process.env, REPRISE_HOME: home };
  return spawnSync(REPRISE, args, { env, stdio: ["ignore", output, output] });
}

function demand(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new DemoError(otherwise);
}

function title(text: string): void {
  say(`\n=== ${text}`);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
