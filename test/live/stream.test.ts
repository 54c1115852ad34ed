// criu dump and restore with --stream: through a streamer, and with no image in the images directory. With CRIU at hand
// (REPRISE_REAL_CRIU) each side is also CRIU's.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { attachProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const TSX = ["--import", import.meta.resolve("tsx")];
const OURS = [process.execPath, ...TSX, join(import.meta.dirname, "../../src/criu/main.ts")];
const STREAMER = join(import.meta.dirname, "streamer.ts");
const CRIU = process.env["REPRISE_REAL_CRIU"];

interface Run {
  readonly status: number | null;
  readonly text: string;
}

async function run(command: readonly string[], args: readonly string[]): Promise<Run> {
  const [program = "", ...rest] = [...command, ...args];
  const child = spawn(program, rest, { stdio: ["ignore", "pipe", "pipe"], timeout: 20_000 });
  let text = "";
  child.stdout.on("data", (data: Buffer) => (text += data.toString()));
  child.stderr.on("data", (data: Buffer) => (text += data.toString()));
  const status = await new Promise<number | null>((resolve) => child.once("exit", resolve));
  return { status, text };
}

/** Starts a streamer; gives its end. */
async function stream(
  mode: "capture" | "serve",
  images: string,
  store: string,
): Promise<() => Promise<number | null>> {
  const child = spawn(process.execPath, [...TSX, STREAMER, mode, images, store], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  await Promise.race([new Promise((resolve) => child.stdout.once("data", resolve)), ended]);
  return () => ended;
}

const sides: readonly (readonly [string, readonly string[], readonly string[]])[] = [
  ["Reprise to Reprise", OURS, OURS],
  ...(CRIU === undefined
    ? []
    : ([
        ["Reprise to CRIU", OURS, [CRIU]],
        ["CRIU to Reprise", [CRIU], OURS],
      ] as const)),
];

for (const [way, dumping, restoring] of sides) {
  test.each(["many_tasks", "memfd_maps", "deleted_files"])(`%s from ${way}`, async (name) => {
    const program = await start(name);
    const images = imagesDirOf(program);
    const store = join(images, "store");
    mkdirSync(store);
    const options = ["-D", images, "--stream", "-v4"];
    const captured = await stream("capture", images, store);
    const dumped = await run(dumping, [
      "dump",
      "-t",
      `${program.pid}`,
      ...options,
      "-o",
      "dump.log",
    ]);
    expect(dumped, logIn(images, "dump.log")).toEqual({ status: 0, text: "" });
    expect(await captured()).toBe(0);
    expect(readdirSync(store)).toContain("inventory.img");
    expect(readdirSync(images).filter((file) => file.endsWith(".img"))).toEqual([]);
    // CRIU does not wait until the dead tasks have been reaped.
    const pids = readdirSync(store).flatMap((file) => /^core-(\d+)\.img$/.exec(file)?.[1] ?? []);
    await expect
      .poll(() => pids.filter((pid) => existsSync(`/proc/${pid}`)), { timeout: 5000 })
      .toEqual([]);
    const served = await stream("serve", images, store);
    const restored = await run(restoring, ["restore", "-d", ...options, "-o", "restore.log"]);
    expect(restored, logIn(images, "restore.log")).toEqual({ status: 0, text: "" });
    expect(await served()).toBe(0);
    expect(readdirSync(images).filter((file) => file.startsWith("stream"))).toEqual([]);
    const back = endWithTest(attachProgram(name, program.pid, program.dir));
    expect(await back.ask()).toBe("ok 1");
    expect(await back.finish()).toBe("pass");
  });
}

test("a streamer that is not there, or ends too early, lets the program go on", async () => {
  const program = await start("pipes");
  const images = imagesDirOf(program);
  const options = ["-t", `${program.pid}`, "-D", images, "--stream"];
  const alone = await run(OURS, ["dump", ...options]);
  expect(alone.status).toBe(1);
  expect(alone.text).toMatch(/cannot connect to .*streamer-capture.sock: connect: ENOENT/);
  // It cannot make a file in a store that is not there.
  const captured = await stream("capture", images, join(images, "none"));
  const cut = await run(OURS, ["dump", ...options]);
  expect(cut.status).toBe(1);
  expect(cut.text).toContain("Dumping FAILED");
  expect(await captured()).not.toBe(0);
  expect(existsSync(join(images, "inventory.img"))).toBe(false);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

function logIn(dir: string, name: string): string {
  const path = join(dir, name);
  const lines = existsSync(path) ? readFileSync(path, "utf8").split("\n") : [];
  return lines.filter((line) => line.includes("Error")).join("\n");
}
