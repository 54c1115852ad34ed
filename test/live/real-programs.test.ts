// Servers as Debian packages them, with a client of this very process connected: they come back with their state and their
// connection, go on, and can be saved again.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { attachProgram, killProgram, makeDir, removeDir } from "./programs.ts";

const TCP = { tcp: { established: true } };

test("redis-server keeps its data and its client", async () => {
  const { dir, port } = await place("redis");
  const options = ["--save", "", "--bind", "127.0.0.1", "--dir", dir];
  const pid = await start(dir, "redis-server", ["--port", String(port), ...options]);
  const client = await connectTo(port);
  const subscriber = await connectTo(port);
  expect(await ask(client, "SET answer 41\r\n")).toBe("+OK\r\n");
  expect(await ask(subscriber, "SUBSCRIBE news\r\n")).toContain("subscribe");
  for (const answer of [":42\r\n", ":43\r\n"]) {
    await again(pid, dir);
    expect(await ask(client, "INCR answer\r\n")).toBe(answer);
    const told = received(subscriber);
    expect(await ask(client, "PUBLISH news hello\r\n")).toBe(":1\r\n");
    expect(await told).toContain("hello");
  }
});

test("memcached with its threads keeps its data and its client", async () => {
  const { dir, port } = await place("memcached");
  const pid = await start(dir, "memcached", ["-p", String(port), "-l", "127.0.0.1", "-u", "root"]);
  const client = await connectTo(port);
  expect(await ask(client, "set answer 0 0 2\r\n41\r\n")).toBe("STORED\r\n");
  for (const answer of ["42\r\n", "43\r\n"]) {
    await again(pid, dir);
    expect(await ask(client, "incr answer 1\r\n")).toBe(answer);
  }
});

test("nginx keeps its workers and a connection that is kept alive", async () => {
  const { dir, port } = await place("nginx");
  const config = join(dir, "nginx.conf");
  writeFileSync(config, nginxConfig(dir, port));
  const pid = await start(dir, "nginx", ["-c", config]);
  const client = await connectTo(port);
  const request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
  expect(await ask(client, request)).toMatch(/request 1$/);
  for (const answer of [/request 2$/, /request 3$/]) {
    await again(pid, dir);
    expect(await ask(client, request)).toMatch(answer);
    expect(await ask(await connectTo(port), request)).toMatch(/request 1$/);
  }
});

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

test.each([
  { name: "Node with a worker", command: process.execPath, file: "count.cjs", text: NODE_WORKER },
  {
    name: "Python with a process and threads",
    command: "/usr/bin/python3",
    file: "count.py",
    text: PYTHON_PROCESSES,
  },
])("$name counts on", async ({ command, file, text }) => {
  const dir = makeDir("language");
  onTestFinished(() => removeDir(dir));
  writeFileSync(join(dir, file), text);
  const pid = await start(dir, command, [join(dir, file)]);
  const reached = (): number => {
    const path = join(dir, "count");
    return existsSync(path) ? Number(readFileSync(path, "utf8")) : 0;
  };
  await expect.poll(reached, { timeout: 10_000 }).toBeGreaterThan(5);
  for (let round = 1; round <= 2; round += 1) {
    await again(pid, dir);
    const before = reached();
    // Not from the beginning: the saved count is where it goes on.
    await expect.poll(reached, { timeout: 10_000 }).toBeGreaterThan(before + 5);
    expect(before).toBeGreaterThan(5);
  }
});

function nginxConfig(dir: string, port: number): string {
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  const temporary = paths.map((name) => `${name}_temp_path ${dir}/${name};`).join(" ");
  return `daemon off; worker_processes 2; pid ${dir}/pid; error_log ${dir}/errors;
events { worker_connections 64; }
http {
  access_log off; ${temporary}
  server { listen 127.0.0.1:${port}; location / { return 200 "request $connection_requests"; } }
}
`;
}

/** A directory and a free port. */
async function place(name: string): Promise<{ dir: string; port: number }> {
  const dir = makeDir(name);
  onTestFinished(() => removeDir(dir));
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return { dir, port };
}

/** Starts a server in a session of its own; it ends with the test. */
async function start(dir: string, command: string, args: readonly string[]): Promise<number> {
  const out = openSync(join(dir, "out"), "a");
  const child = spawn(command, args, {
    cwd: dir,
    detached: true,
    stdio: ["ignore", out, out],
    env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" },
  });
  closeSync(out);
  await once(child, "spawn");
  child.unref();
  const { pid } = child;
  if (pid === undefined) throw new Error(`cannot start ${command}`);
  onTestFinished(() => killProgram(attachProgram(command, pid, dir)));
  return pid;
}

/** Saves and ends it, and brings it back. */
async function again(pid: number, dir: string): Promise<void> {
  const imagesDir = mkdtempSync(join(dir, "images-"));
  await checkpoint({ pid, imagesDir, ...TCP });
  const restored = await restore({ imagesDir, ...TCP });
  expect(restored.pid).toBe(pid);
}

async function connectTo(port: number): Promise<Socket> {
  for (const end = Date.now() + 10_000; ;) {
    const client = connect(port, "127.0.0.1");
    onTestFinished(() => void client.destroy());
    try {
      await once(client, "connect");
      return client;
    } catch (error) {
      if (Date.now() > end) throw error;
      await sleep(20);
    }
  }
}

function ask(client: Socket, request: string): Promise<string> {
  const answer = received(client);
  client.write(request);
  return answer;
}

async function received(client: Socket): Promise<string> {
  const [data] = (await once(client, "data", { signal: AbortSignal.timeout(15_000) })) as [Buffer];
  return data.toString();
}
