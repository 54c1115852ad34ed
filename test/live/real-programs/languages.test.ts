// Programs in languages with a run time of their own (threads, timers, just-in-time code, collected memory): they come back
// and go on from where they were.

import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { again, ask, connectTo, directory, place, ROUNDS, says, start } from "./program.ts";

const GO_CACHE = fileURLToPath(new URL("../../../build/go", import.meta.url));

const NODE_WORKER = `
const { Worker, isMainThread, parentPort } = require("node:worker_threads");
const { renameSync, writeFileSync } = require("node:fs");
let count = 0;
if (isMainThread) {
  new Worker(__filename).on("message", (n) => {
    writeFileSync("next", String(n));
    renameSync("next", "count");
  });
} else setInterval(() => parentPort.postMessage(++count), 20);
`;

/** libuv does these by rings of its own, which threads of the kernel serve. */
const NODE_RINGS = `
const { rename, writeFile } = require("node:fs/promises");
let count = 0;
async function step() {
  await writeFile("next", String(++count));
  await rename("next", "count");
  setTimeout(step, 20);
}
void step();
`;

const PYTHON_PROCESSES = `
import multiprocessing, os, threading, time

def count(queue):
    n = 0
    while True:
        n += 1
        queue.put(n)
        time.sleep(0.02)

def write(queue):
    while True:
        n = queue.get()
        with open("next", "w") as file:
            file.write(str(n))
        os.replace("next", "count")

queue = multiprocessing.Queue()
multiprocessing.Process(target=count, args=(queue,)).start()
threading.Thread(target=write, args=(queue,)).start()
`;

test.each<{
  readonly name: string;
  readonly command: string;
  readonly args?: readonly string[];
  readonly file: string;
  readonly text: string;
}>([
  { name: "Node with a worker", command: process.execPath, file: "count.cjs", text: NODE_WORKER },
  {
    name: "Node with io_uring",
    command: "/usr/bin/env",
    args: ["UV_USE_IO_URING=1", process.execPath],
    file: "count.cjs",
    text: NODE_RINGS,
  },
  {
    name: "Python with a process and threads",
    command: "/usr/bin/python3",
    file: "count.py",
    text: PYTHON_PROCESSES,
  },
])("$name counts on", async ({ command, args = [], file, text }) => {
  const dir = directory("language");
  writeFileSync(join(dir, file), text);
  let pid = await start(dir, command, [...args, join(dir, file)]);
  const reached = (): number => {
    const path = join(dir, "count");
    return existsSync(path) ? Number(readFileSync(path, "utf8")) : 0;
  };
  await expect.poll(reached, { timeout: 10_000 }).toBeGreaterThan(5);
  for (const round of ROUNDS) {
    pid = await again(pid, dir, round);
    const before = reached();
    // Not from the beginning: the saved count is where it goes on.
    await expect.poll(reached, { timeout: 10_000 }).toBeGreaterThan(before + 5);
    expect(before).toBeGreaterThan(5);
  }
});

test("a Java virtual machine keeps its threads, its heap and its client", async () => {
  const { dir, port } = await place("java");
  execFileSync("javac", ["-d", dir, source("Work.java")], { stdio: "pipe" });
  let pid = await start(dir, "java", ["-Xmx96m", "-cp", dir, "Work", String(port)]);
  const client = await connectTo(port);
  const number = async (question: string): Promise<number> =>
    Number(await ask(client, `${question}\n`));
  expect(await number("heap")).toBe(50_000);
  const collected = await number("collect");
  let before = { turns: await number("turns"), ticks: await number("ticks") };
  for (const [round, how] of ROUNDS.entries()) {
    pid = await again(pid, dir, how);
    expect(await number("turns")).toBeGreaterThanOrEqual(before.turns);
    await expect.poll(() => number("turns")).toBeGreaterThan(before.turns + 60);
    await expect.poll(() => number("ticks")).toBeGreaterThan(before.ticks + 10);
    expect(await number("heap")).toBe(50_000);
    expect(await number("collect")).toBeGreaterThan(collected + round);
    expect(Number(await ask(await connectTo(port), "heap\n"))).toBe(50_000);
    before = { turns: await number("turns"), ticks: await number("ticks") };
  }
  expect(says(dir)).toBe("");
});

test("a Go server keeps its goroutines, its timers and its clients", async () => {
  const { dir, port } = await place("go");
  const env = { ...process.env, GO111MODULE: "off", GOCACHE: GO_CACHE };
  const program = join(dir, "work");
  execFileSync("go", ["build", "-o", program, source("work.go")], { stdio: "pipe", env });
  let pid = await start(dir, program, [String(port)]);
  const client = await connectTo(port);
  const late = await connectTo(port);
  const number = async (what: string): Promise<number> => Number(await get(client, what));
  expect(await number("connection")).toBe(1);
  let before = { turns: await number("turns"), ticks: await number("ticks") };
  for (const [round, how] of ROUNDS.entries()) {
    const later = get(late, "later"); // its timer is still to come
    await expect.poll(() => number("ticks")).toBeGreaterThan(before.ticks + 5);
    pid = await again(pid, dir, how);
    expect(await later).toBe("done");
    expect(await number("turns")).toBeGreaterThanOrEqual(before.turns);
    await expect.poll(() => number("turns")).toBeGreaterThan(before.turns + 60);
    await expect.poll(() => number("ticks")).toBeGreaterThan(before.ticks + 10);
    expect(await number("heap")).toBe(2 ** 14 - 1);
    expect(await number("connection")).toBe(1);
    expect(Number(await get(await connectTo(port), "connection"))).toBe(round + 3);
    before = { turns: await number("turns"), ticks: await number("ticks") };
  }
  expect(says(dir)).toBe("");
});

/** The body of an answer on a connection that is kept. */
async function get(client: Socket, what: string): Promise<string> {
  const answer = await ask(client, `GET /${what} HTTP/1.1\r\nHost: test\r\n\r\n`);
  return answer.slice(answer.indexOf("\r\n\r\n") + 4);
}

function source(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}
