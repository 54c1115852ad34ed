// Pages that go over a connection: page servers that take them from a dump, and lazy-pages daemons that fill the memory of a
// restore, from images, from a page server, or from the tasks of a dump. With CRIU at hand (REPRISE_REAL_CRIU) each side is
// also CRIU's.

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { preDump } from "../../src/engine/pre-dump.ts";
import { restore } from "../../src/engine/restore.ts";
import { listenTcp } from "../../src/sys/stream.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, start } from "./suite.ts";

const MAIN = join(import.meta.dirname, "../../src/criu/main.ts");
const REPRISE = [process.execPath, "--import", import.meta.resolve("tsx"), MAIN] as const;
const CRIU = process.env["REPRISE_REAL_CRIU"];
const FREE_PIDS_MS = 5000;
const ADDRESS = "127.0.0.1";

interface Server {
  /** Exit code. */
  end(): Promise<number | null>;
}

/** A free port: whoever listens there next gets it. */
function freePort(): number {
  const { fd, port } = listenTcp({ address: ADDRESS, port: 0 });
  closeSync(fd);
  return port;
}

/** Starts a command of ours or of CRIU's, and waits until it is ready to be connected to. */
async function serve(
  command: readonly string[],
  args: readonly string[],
  imagesDir: string,
): Promise<Server> {
  const [program = "", ...rest] = command;
  const all = [
    ...rest,
    ...args,
    "-D",
    imagesDir,
    "-v4",
    "-o",
    `${args[0]}.log`,
    "--status-fd",
    "3",
  ];
  const child = spawn(program, all, { stdio: ["ignore", "ignore", "inherit", "pipe"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  const exited = new Promise<number | null>((resolve) => child.once("exit", resolve));
  const ready = child.stdio[3] as Readable;
  const byte = await Promise.race([
    new Promise<boolean>((resolve) => ready.once("data", () => resolve(true))),
    exited.then(() => false),
  ]);
  if (!byte) throw new Error(`${args[0]}: ${logOf(imagesDir, args[0] ?? "")}`);
  return { end: () => exited };
}

function logOf(imagesDir: string, action: string): string {
  const path = join(imagesDir, `${action}.log`);
  return existsSync(path) ? readFileSync(path, "utf8").split("\n").slice(-8).join("\n") : "no log";
}

async function expectToGoOn(program: RunningProgram, pid: number): Promise<void> {
  const restored = endWithTest(attachProgram(program.name, pid, program.dir));
  expect(await restored.ask()).toBe("ok 1");
  expect(await restored.finish()).toBe("pass");
}

function pagesIn(imagesDir: string): number {
  const files = readdirSync(imagesDir).filter((name) => /^pages-\d+\.img$/.test(name));
  return files.reduce((sum, name) => sum + statSync(join(imagesDir, name)).size, 0) / 4096;
}

const sides: readonly (readonly [string, readonly string[]])[] = [
  ["Reprise", REPRISE],
  ...(CRIU === undefined ? [] : [["CRIU", [CRIU]] as const]),
];

describe.each(sides)("a page server of %s", (_name, command) => {
  test.each(["changing_pages", "memfd_maps", "many_tasks"])(
    "takes the pages of %s",
    async (name) => {
      const program = await start(name);
      const images = imagesDirOf(program);
      const server = join(images, "server");
      mkdirSync(server);
      const port = freePort();
      const running = await serve(
        command,
        ["page-server", "--address", ADDRESS, "--port", `${port}`],
        server,
      );
      const { stats } = await checkpoint({
        pid: program.pid,
        imagesDir: images,
        pageServer: { address: ADDRESS, port },
      });
      expect(await running.end(), logOf(server, "page-server")).toBe(0);
      expect(pagesIn(images)).toBe(0);
      expect(pagesIn(server)).toBe(stats.pages_written + stats.shpages_written);
      copyPages(server, images);
      const { pid } = await restore({ imagesDir: images });
      await expectToGoOn(program, pid);
    },
  );

  test("takes a chain, in which pages are left to the parent", async () => {
    const program = await start("changing_pages");
    const top = imagesDirOf(program);
    const dirs = ["1", "2", "3"].map((name) => join(top, name));
    for (const [index, imagesDir] of dirs.entries()) {
      mkdirSync(imagesDir);
      const port = freePort();
      const running = await serve(
        command,
        ["page-server", "--address", ADDRESS, "--port", `${port}`],
        imagesDir,
      );
      const options = {
        pid: program.pid,
        imagesDir,
        pageServer: { address: ADDRESS, port },
        ...(index === 0 ? {} : { parentDir: `../${index}` }),
      };
      const { stats } = await (index < 2 ? preDump(options) : checkpoint(options));
      expect(await running.end(), logOf(imagesDir, "page-server")).toBe(0);
      expect(pagesIn(imagesDir)).toBe(stats.pages_written + stats.shpages_written);
      if (index > 0) expect(stats.pages_skipped_parent).toBeGreaterThan(0);
    }
    const { pid } = await restore({ imagesDir: dirs[2] ?? "" });
    await expectToGoOn(program, pid);
  });
});

function copyPages(from: string, to: string): void {
  for (const name of readdirSync(from))
    if (name.startsWith("page")) cpSync(join(from, name), join(to, name));
}

describe.skipIf(CRIU === undefined)("a dump of CRIU", () => {
  test("sends its pages to our page server", async () => {
    const program = await start("changing_pages");
    const images = imagesDirOf(program);
    const port = freePort();
    const address = ["--address", ADDRESS, "--port", `${port}`];
    const running = await serve(REPRISE, ["page-server", ...address], images);
    await run([CRIU ?? ""], ["dump", "-t", `${program.pid}`, "--page-server", ...address], images);
    expect(await running.end(), logOf(images, "page-server")).toBe(0);
    const { pid } = await restore({ imagesDir: images });
    await expectToGoOn(program, pid);
  });
});

/** CRIU does not wait until those who reap the dead tasks have done so. */
async function freePids(imagesDir: string): Promise<void> {
  const pids = readdirSync(imagesDir).flatMap((name) => /^core-(\d+)\.img$/.exec(name)?.[1] ?? []);
  const end = Date.now() + FREE_PIDS_MS;
  while (pids.some((pid) => existsSync(`/proc/${pid}`)) && Date.now() < end) await sleep(20);
}

describe.skipIf(CRIU === undefined)("a restore of CRIU", () => {
  test.each(["changing_pages", "many_tasks"])(
    "gets the memory of %s from our lazy-pages daemon",
    async (name) => {
      const program = await start(name);
      const imagesDir = imagesDirOf(program);
      await checkpoint({ pid: program.pid, imagesDir });
      await freePids(imagesDir);
      const daemon = await serve(REPRISE, ["lazy-pages", "-W", imagesDir], imagesDir);
      await run([CRIU ?? ""], ["restore", "-d", "--lazy-pages", "-W", imagesDir], imagesDir);
      await expectToGoOn(program, program.pid);
      expect(await daemon.end(), logOf(imagesDir, "lazy-pages")).toBe(0);
    },
  );
});

const hasOpenssl = spawnSync("openssl", ["version"]).status === 0;

describe.skipIf(!hasOpenssl)("by TLS", () => {
  const pairs = sides.flatMap(([server, command]) => [
    [server, "Reprise", command, REPRISE] as const,
    ...(server === "CRIU" ? [["Reprise", "CRIU", REPRISE, command] as const] : []),
  ]);
  test.each(pairs)("a page server of %s takes the pages of a dump of %s", async (...pair) => {
    const [, , server, client] = pair;
    const program = await start("changing_pages");
    const images = imagesDirOf(program);
    const certificate = makeCertificate(images);
    const options = ["--address", ADDRESS, "--port", `${freePort()}`, ...certificate];
    const running = await serve(server, ["page-server", ...options], images);
    await run(client, ["dump", "-t", `${program.pid}`, "--page-server", ...options], images);
    expect(await running.end(), logOf(images, "page-server")).toBe(0);
    const { pid } = await restore({ imagesDir: images });
    await expectToGoOn(program, pid);
  });

  test("a lazy-pages daemon gets its pages", async () => {
    const program = await start("changing_pages");
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const certificate = makeCertificate(imagesDir);
    const options = ["--address", ADDRESS, "--port", `${freePort()}`, ...certificate];
    const server = await serve(REPRISE, ["page-server", "--lazy-pages", ...options], imagesDir);
    const args = ["lazy-pages", "--page-server", ...options, "-W", imagesDir];
    const daemon = await serve(REPRISE, args, imagesDir);
    const { pid } = await restore({ imagesDir, lazyPages: true });
    await expectToGoOn(program, pid);
    expect(await daemon.end(), logOf(imagesDir, "lazy-pages")).toBe(0);
    expect(await server.end(), logOf(imagesDir, "page-server")).toBe(0);
  });
});

/** One certificate for both sides, which signs itself. */
function makeCertificate(dir: string): string[] {
  const [key, certificate] = [join(dir, "key.pem"), join(dir, "cert.pem")];
  const args = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"];
  const { status } = spawnSync("openssl", [...args, "-keyout", key, "-out", certificate]);
  expect(status).toBe(0);
  const files = ["--tls-key", key, "--tls-cert", certificate, "--tls-cacert", certificate];
  return ["--tls", "--tls-no-cn-verify", ...files];
}

async function run(
  command: readonly string[],
  args: readonly string[],
  imagesDir: string,
): Promise<void> {
  const [program = "", ...rest] = command;
  const child: ChildProcess = spawn(
    program,
    [...rest, ...args, "-D", imagesDir, "-v4", "-o", `${args[0]}.log`],
    {
      stdio: "ignore",
    },
  );
  const status = await new Promise<number | null>((resolve) => child.once("exit", resolve));
  if (status !== 0)
    throw new Error(`${args[0]} ended with ${status}: ${logOf(imagesDir, args[0] ?? "")}`);
}

test("a dump whose page server dies leaves the program running, and no images", async () => {
  const program = await start("big_heap");
  const imagesDir = imagesDirOf(program);
  const pageServer = { address: ADDRESS, port: await brokenServer() };
  const dump = checkpoint({ pid: program.pid, imagesDir, pageServer });
  await expect(dump).rejects.toMatchObject({ code: "SYSCALL" });
  expect(readdirSync(imagesDir)).toEqual([]);
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

/** A process that closes every connection at its first message, since the dump talks in this very thread. Gives its port. */
async function brokenServer(): Promise<number> {
  const source = `
    const server = require("node:net").createServer((one) => one.once("data", () => one.destroy()));
    server.listen(0, "${ADDRESS}", () => console.log(server.address().port));
  `;
  const child = spawn(process.execPath, ["-e", source], { stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  return new Promise((resolve) =>
    child.stdout.once("data", (data: Buffer) => resolve(Number(data.toString()))),
  );
}

describe.each(sides)("a lazy-pages daemon of %s", (_name, command) => {
  test.each(["changing_pages", "big_heap", "many_tasks", "threads", "cow_fork", "zombies"])(
    "fills the memory of %s",
    async (name) => {
      const program = await start(name);
      const imagesDir = imagesDirOf(program);
      await checkpoint({ pid: program.pid, imagesDir });
      const daemon = await serve(command, ["lazy-pages", "-W", imagesDir], imagesDir);
      const { pid, stats } = await restore({ imagesDir, lazyPages: true });
      expect(stats.pages_restored).toBeLessThan(pagesIn(imagesDir));
      await expectToGoOn(program, pid);
      expect(await daemon.end(), logOf(imagesDir, "lazy-pages")).toBe(0);
    },
  );

  test("fills the memory of a tree in a user namespace", async () => {
    const program = await start("namespaces", ["pid", "user", "uts"], { inner: true });
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const daemon = await serve(command, ["lazy-pages", "-W", imagesDir], imagesDir);
    const { pid, stats } = await restore({ imagesDir, lazyPages: true });
    expect(stats.pages_restored).toBeLessThan(pagesIn(imagesDir));
    await expectToGoOn(program, pid);
    expect(await daemon.end(), logOf(imagesDir, "lazy-pages")).toBe(0);
  });
});

describe.each(sides)(
  "a lazy-pages daemon of %s that asks a page server of ours",
  (_name, command) => {
    test("gets the pages of a set", async () => {
      const program = await start("changing_pages");
      const imagesDir = imagesDirOf(program);
      await checkpoint({ pid: program.pid, imagesDir });
      const address = ["--address", ADDRESS, "--port", `${freePort()}`];
      const server = await serve(REPRISE, ["page-server", "--lazy-pages", ...address], imagesDir);
      const daemon = await serve(
        command,
        ["lazy-pages", "--page-server", ...address, "-W", imagesDir],
        imagesDir,
      );
      const { pid } = await restore({ imagesDir, lazyPages: true });
      await expectToGoOn(program, pid);
      expect(await daemon.end(), logOf(imagesDir, "lazy-pages")).toBe(0);
      expect(await server.end(), logOf(imagesDir, "page-server")).toBe(0);
    });

    test("gets the pages that a dump has left in its tasks, which end then", async () => {
      const program = await start("changing_pages");
      const imagesDir = imagesDirOf(program);
      const address = ["--address", ADDRESS, "--port", `${freePort()}`];
      const dump = await serve(
        REPRISE,
        ["dump", "-t", `${program.pid}`, "--lazy-pages", ...address],
        imagesDir,
      );
      const daemon = await serve(
        command,
        ["lazy-pages", "--page-server", ...address, "-W", imagesDir],
        imagesDir,
      );
      expect(existsSync(`/proc/${program.pid}/stat`)).toBe(true);
      const { pid } = await restore({ imagesDir, lazyPages: true, newPidNamespace: true });
      await expectToGoOn(program, pid);
      expect(await daemon.end(), logOf(imagesDir, "lazy-pages")).toBe(0);
      expect(await dump.end(), logOf(imagesDir, "dump")).toBe(0);
    });
  },
);

test("a restore without a daemon is refused, and leaves nothing", async () => {
  const program = await start("big_heap");
  const imagesDir = imagesDirOf(program);
  await checkpoint({ pid: program.pid, imagesDir });
  await expect(restore({ imagesDir, lazyPages: true })).rejects.toThrow("lazy-pages.socket");
  const { pid } = await restore({ imagesDir });
  await expectToGoOn(program, pid);
});
