// Engines that stand by: bin/criu hands its work to one, and nobody can tell the difference, but by the clock.

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { killProgram, makeDir, removeDir, startProgram, type RunningProgram } from "./programs.ts";

const BIN = join(import.meta.dirname, "../../bin");
const STOOD_BY = /an engine that stood by \(pid (\d+)\) works for pid (\d+)/;

let standby: string;
let keeper: ChildProcess;
let keeperWords = "";
beforeAll(async () => {
  standby = mkdtempSync(join(tmpdir(), "reprise-standby-test-"));
  keeper = spawn(join(BIN, "reprise"), ["standby", "--engines", "1"], {
    env: { PATH: process.env["PATH"], REPRISE_STANDBY: standby },
    stdio: ["ignore", "pipe", "pipe"],
  });
  keeper.stderr?.on("data", (data: Buffer) => (keeperWords += data.toString()));
  const [line] = (await once(keeper.stdout as NonNullable<typeof keeper.stdout>, "data")) as [
    Buffer,
  ];
  expect(line.toString()).toBe("engines stand by\n");
});
afterAll(async () => {
  const ended = once(keeper, "exit");
  keeper.kill("SIGTERM");
  expect(await ended).toEqual([0, null]);
  rmSync(standby, { recursive: true });
});

let dir: string;
let images: string;
beforeEach(() => {
  dir = makeDir("standby");
  onTestFinished(() => removeDir(dir));
  images = join(dir, "images");
  mkdirSync(images);
});

interface Outcome {
  readonly pid: number | undefined;
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function start(args: readonly string[], env: Readonly<Record<string, string>> = {}): ChildProcess {
  return spawn(join(BIN, "criu"), args, {
    cwd: dir,
    env: { PATH: process.env["PATH"], REPRISE_STANDBY: standby, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 20_000,
  });
}

async function criu(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Outcome> {
  await engineReady();
  const child = start(args, env);
  let stdout = "";
  let stderr = "";
  child.stdout?.on("data", (data: Buffer) => (stdout += data.toString()));
  child.stderr?.on("data", (data: Buffer) => (stderr += data.toString()));
  const status = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { pid: child.pid, status, stdout, stderr };
}

async function until(what: string, isTrue: () => boolean): Promise<void> {
  for (const end = Date.now() + 30_000; !isTrue();) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(5);
  }
}

function engineReady(): Promise<void> {
  const slot = join(standby, "0");
  return until(
    "an engine",
    () => existsSync(join(slot, "request")) && !existsSync(join(slot, "busy")),
  );
}

/** The engine and the command of a log. */
function whoWorked(log: string): { engine: number; front: number } {
  const [, engine, front] = STOOD_BY.exec(readFileSync(join(images, log), "utf8")) ?? [];
  return { engine: Number(engine), front: Number(front) };
}

async function program(name = "heap_brk", args: readonly string[] = []): Promise<RunningProgram> {
  const started = await startProgram(name, args, { dir });
  onTestFinished(() => killProgram(started));
  await started.waitReady();
  return started;
}

const ROUNDS = 5;

/** A dump that an engine has begun, and whose script takes its time. */
async function slowDump(
  { pid }: RunningProgram,
  seconds: number,
  ...more: readonly string[]
): Promise<ChildProcess> {
  const script = join(dir, "slow.sh");
  writeFileSync(script, `#!/bin/sh\nsleep ${seconds}\n`, { mode: 0o755 });
  await engineReady();
  const words = ["dump", "-t", `${pid}`, "-D", "images", "-v4", "-o", "d.log", ...more];
  const command = start([...words, "--action-script", script]);
  const log = join(images, "d.log");
  await until("it works", () => existsSync(log) && whoWorked("d.log").engine > 0);
  return command;
}

describe("an engine that stands by", { timeout: 60_000 }, () => {
  // With many descriptors the engine's own table grows.
  test.each([
    { name: "many_kinds", args: [] },
    { name: "many_fds", args: ["400", "sockets"] },
  ])(
    "saves and restores $name $args, as a child of who asked for it, again and again, and stays the same one",
    async ({ name, args }) => {
      const one = await program(name, args);
      const engines = new Set<number>();
      for (let round = 0; round < ROUNDS; round += 1) {
        const dumped = await criu([
          "dump",
          "-t",
          `${one.pid}`,
          "-D",
          "images",
          "-v4",
          "-o",
          "d.log",
        ]);
        expect(dumped).toMatchObject({ status: 0, stdout: "", stderr: "" });
        engines.add(whoWorked("d.log").engine);
        expect(whoWorked("d.log").front).toBe(dumped.pid);
        const words = ["-D", "images", "-v4", "-o", "r.log", "-d", "--pidfile", `pid${round}`];
        const isLast = round === ROUNDS - 1;
        const restored = await criu([
          "restore",
          ...words,
          ...(isLast ? ["--restore-sibling"] : []),
        ]);
        expect(restored).toMatchObject({ status: 0, stdout: "", stderr: "" });
        engines.add(whoWorked("r.log").engine);
        // The test started criu: a sibling of criu is its child. Another child's parent is gone.
        const parent = /^PPid:\t(\d+)$/m.exec(readFileSync(`/proc/${one.pid}/status`, "utf8"))?.[1];
        expect(parent === `${process.pid}`).toBe(isLast);
        expect(await one.ask()).toMatch(/^ok/);
      }
      expect(engines.size).toBe(1);
      expect(keeperWords).toBe("");
      expect(await one.finish()).toBe("pass");
    },
  );

  test("has the directory, the environment, the file mask and the output of the command", async () => {
    const one = await program();
    const script = join(dir, "script.sh");
    writeFileSync(script, '#!/bin/sh\necho "$CRTOOLS_SCRIPT_ACTION $MARK" >>"$OUT"\n', {
      mode: 0o755,
    });
    const out = join(dir, "script.out");
    const words = ["dump", "-t", `${one.pid}`, "-D", "images", "-R", "--display-stats"];
    const dumped = await criu([...words, "--action-script", script], { MARK: "a mark", OUT: out });
    expect(dumped).toMatchObject({ status: 0, stderr: "" });
    expect(dumped.stdout).toMatch(/^Displaying dump stats:\nFreezing time: \d+ us\n/);
    expect(readFileSync(out, "utf8")).toContain("post-dump a mark\n");
    const failed = await criu(["dump", "-t", "4194303", "-D", "images"]);
    expect(failed).toMatchObject({ status: 1, stdout: "" });
    expect(failed.stderr).toContain("cannot stop pid 4194303: there is no such process");
    expect(await one.ask()).toMatch(/^ok/);
  });

  test("leaves to a process of its own what waits for the restored tree", async () => {
    const one = await program();
    expect((await criu(["dump", "-t", `${one.pid}`, "-D", "images"])).status).toBe(0);
    await engineReady();
    const child = start(["restore", "-D", "images", "-v4", "-o", "r.log"]);
    const ended = once(child, "exit");
    await until("the process is back", () => existsSync(`/proc/${one.pid}/exe`));
    expect(await one.ask()).toMatch(/^ok/);
    expect(child.exitCode).toBeNull();
    expect(readFileSync(join(images, "r.log"), "utf8")).not.toMatch(STOOD_BY);
    expect(await one.finish()).toBe("pass");
    expect(await ended).toEqual([0, null]);
  });

  test("is busy with one command: the next starts an engine of its own", async () => {
    const one = await program();
    const slow = await slowDump(one, 1, "-R");
    const two = await program("heap_brk");
    mkdirSync(join(dir, "other"));
    const cold = start(["dump", "-t", `${two.pid}`, "-D", "other", "-R", "-v4", "-o", "cold.log"]);
    expect(await once(cold, "exit")).toEqual([0, null]);
    expect(readFileSync(join(dir, "other/cold.log"), "utf8")).not.toMatch(STOOD_BY);
    expect(await once(slow, "exit")).toEqual([0, null]);
    expect(whoWorked("d.log").engine).toBeGreaterThan(0);
  });

  test("ends with a command that is killed, and another takes its place; the process goes on", async () => {
    const one = await program();
    const command = await slowDump(one, 3);
    const { engine } = whoWorked("d.log");
    command.kill("SIGKILL");
    await until("the engine is gone", () => !existsSync(`/proc/${engine}/exe`));
    expect(await one.ask()).toMatch(/^ok/);
    rmSync(images, { recursive: true });
    mkdirSync(images);
    const again = await criu([
      "dump",
      "-t",
      `${one.pid}`,
      "-D",
      "images",
      "-R",
      "-v4",
      "-o",
      "d.log",
    ]);
    expect(again.status).toBe(0);
    expect(whoWorked("d.log").engine).toBeGreaterThan(0);
    expect(whoWorked("d.log").engine).not.toBe(engine);
  });

  test("tells its command when it was killed itself", async () => {
    const one = await program();
    const command = await slowDump(one, 3);
    let stderr = "";
    command.stderr?.on("data", (data: Buffer) => (stderr += data.toString()));
    process.kill(whoWorked("d.log").engine, "SIGKILL");
    expect(await once(command, "exit")).toEqual([1, null]);
    expect(stderr).toContain("the engine that stood by ended in the middle of its work");
    expect(await one.ask()).toMatch(/^ok/);
    await engineReady();
  });
});

test(
  "without a keeper criu does its work itself; what a dead one left does no harm",
  { timeout: 60_000 },
  async () => {
    const place = join(dir, "standby");
    const env = { PATH: process.env["PATH"] ?? "", REPRISE_STANDBY: place };
    const own = spawn(join(BIN, "reprise"), ["standby", "-e", "1"], {
      env,
      stdio: ["ignore", "pipe", "ignore"],
    });
    await once(own.stdout, "data");
    const pid = Number.parseInt(readFileSync(join(place, "keeper"), "utf8"), 10);
    process.kill(pid, "SIGKILL");
    await once(own, "exit");
    expect(existsSync(join(place, "0/request"))).toBe(true);
    const one = await program();
    const words = ["dump", "-t", `${one.pid}`, "-D", "images", "-R"];
    const command = start(words, env);
    expect(await once(command, "exit")).toEqual([0, null]);
    rmSync(place, { recursive: true });
    expect(await once(start(words, env), "exit")).toEqual([0, null]);
  },
);
