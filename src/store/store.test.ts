import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { entryBytes, headBytes, ImageFile, readEntries } from "../images/image-file.ts";
import { imageName } from "../images/names.ts";
import {
  beginCheckpoint,
  findCheckpoint,
  listCheckpoints,
  removeCheckpoint,
} from "./checkpoints.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { createTaskDirectory, taskDirectory } from "./home.ts";
import { aliveTask, killTask, restoreTask, runTask } from "./lifecycle.ts";
import { relocateImages } from "./relocate.ts";
import {
  createTask,
  isAlive,
  listTasks,
  logPath,
  readTask,
  removeTask,
  taskState,
  writeTask,
  type TaskRecord,
} from "./tasks.ts";

let home: string;
const before = process.env["REPRISE_HOME"];

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "store-"));
  process.env["REPRISE_HOME"] = home;
});

afterEach(() => {
  for (const task of listTasks()) killTask(task);
  rmSync(home, { recursive: true });
  if (before === undefined) delete process.env["REPRISE_HOME"];
  else process.env["REPRISE_HOME"] = before;
});

function recordOf(name: string): TaskRecord {
  const createdAt = new Date(0).toISOString();
  return { name, command: ["true"], pid: 0x7fff_fff0, startTime: 1, placement: "host", createdAt };
}

/** Makes a checkpoint that counts as whole. */
function wholeCheckpoint(task: string) {
  const meta = {
    task,
    command: ["true"],
    pid: 5,
    placement: "host" as const,
    createdAt: new Date(0).toISOString(),
  };
  const checkpoint = beginCheckpoint(meta);
  writeFileSync(join(checkpoint.imagesDir, imageName("inventory")), "12345");
  return checkpoint;
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await setTimeout(10);
}

describe("names", () => {
  it.each(["", "a/b", "..", "-x", ".hidden", "a b", "x".repeat(64)])("refuses %j", (name) => {
    expect(() => taskDirectory(name)).toThrow("is not a name");
  });

  it("are taken once, and kept from others than root", () => {
    const directory = createTaskDirectory("one");
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    expect(statSync(join(home, "tasks")).mode & 0o777).toBe(0o700);
    expect(() => createTaskDirectory("one")).toThrow("the name one is taken");
  });
});

describe("task records", () => {
  it("come back as they were written, sorted by name", async () => {
    await createTask("b", () => recordOf("b"));
    await createTask("a", () => recordOf("a"));
    expect(listTasks()).toEqual([recordOf("a"), recordOf("b")]);
  });

  it("leave the name free when the start fails", async () => {
    const failing = createTask("a", () => {
      throw new Error("no");
    });
    await expect(failing).rejects.toThrow("no");
    expect(existsSync(taskDirectory("a"))).toBe(false);
  });

  it("tell a name that nobody has", () => {
    expect(() => readTask("nobody")).toThrow("there is no task nobody");
  });

  it("tell a record that is damaged", async () => {
    await createTask("a", () => recordOf("a"));
    writeFileSync(join(taskDirectory("a"), "state.json"), "");
    expect(() => readTask("a")).toThrow(/^cannot read .*state.json: it is damaged$/);
    removeTask("a");
  });

  it("do not take another process with the same pid for the task", () => {
    expect(isAlive({ ...recordOf("a"), pid: process.pid })).toBe(false);
  });

  it("tell tasks that a checkpoint ended from those that ended", () => {
    expect(taskState(recordOf("a"))).toBe("ended");
    expect(taskState({ ...recordOf("a"), checkpointedAs: 1 })).toBe("checkpointed");
  });
});

describe("runTask()", () => {
  it("runs a command in a session of its own with its output appended to the log", async () => {
    const task = await runTask("echo", ["sh", "-c", "echo out; echo err >&2; sleep 100"]);
    expect(taskState(task)).toBe("running");
    await until(() => readFileSync(logPath("echo"), "utf8") === "out\nerr\n");
    const [, session] =
      /^\d+ \(sh\) \S \d+ \d+ (\d+)/.exec(readFileSync(`/proc/${task.pid}/stat`, "utf8")) ?? [];
    expect(Number(session)).toBe(task.pid);
    const flags = readFileSync(`/proc/${task.pid}/fdinfo/1`, "utf8");
    expect(Number.parseInt(/flags:\s+(\d+)/.exec(flags)?.[1] ?? "", 8) & 0o2000).toBe(0o2000);
    expect(statSync(logPath("echo")).mode & 0o777).toBe(0o600);
  });

  it("gives back to the command what the launcher kept from Node", async () => {
    process.env["REPRISE_CALLER_NODE_OPTIONS"] = "--no-warnings";
    try {
      await runTask("env", ["sh", "-c", 'echo "$NODE_OPTIONS,$REPRISE_CALLER_NODE_OPTIONS"']);
    } finally {
      delete process.env["REPRISE_CALLER_NODE_OPTIONS"];
    }
    await until(() => readFileSync(logPath("env"), "utf8") === "--no-warnings,\n");
  });

  it("refuses a command that cannot be started and leaves the name free", async () => {
    await expect(runTask("bad", ["/nonexistent"])).rejects.toThrow(
      "cannot start /nonexistent: ENOENT",
    );
    expect(listTasks()).toEqual([]);
  });

  it("ends with killTask(), children included", async () => {
    const task = await runTask("tree", ["sh", "-c", "sleep 100 & echo $!; wait"]);
    await until(() => readFileSync(logPath("tree"), "utf8").includes("\n"));
    const [child = 0] = readChildrenIfAlive(task.pid) ?? [];
    expect(child).not.toBe(0);
    killTask(task);
    await until(() => !isAlive(task));
    await until(
      () =>
        !existsSync(`/proc/${child}`) ||
        readFileSync(`/proc/${child}/stat`, "utf8").includes(") Z "),
    );
    expect(() => aliveTask("tree")).toThrow("tree is not running");
  });

  it("is not restored while it runs", async () => {
    await runTask("busy", ["sleep", "100"]);
    const checkpoint = wholeCheckpoint("busy");
    await expect(restoreTask(checkpoint, { newPidNamespace: false })).rejects.toThrow(
      "busy is running",
    );
  });
});

describe("checkpoints", () => {
  beforeEach(async () => {
    await createTask("a", () => recordOf("a"));
  });

  it("are numbered from 1 and found by number or as the newest", () => {
    wholeCheckpoint("a");
    wholeCheckpoint("a");
    expect(listCheckpoints("a").map((checkpoint) => checkpoint.number)).toEqual([1, 2]);
    expect(findCheckpoint("a").number).toBe(2);
    expect(findCheckpoint("a", 1)).toMatchObject({ number: 1, bytes: 5, pid: 5 });
    expect(() => findCheckpoint("a", 3)).toThrow("a does not have checkpoint 3");
  });

  it("without an inventory do not count", () => {
    const unfinished = wholeCheckpoint("a");
    rmSync(join(unfinished.imagesDir, imageName("inventory")));
    expect(listCheckpoints("a")).toEqual([]);
    expect(() => findCheckpoint("a")).toThrow("a does not have a checkpoint");
  });

  it("are for root alone, and go with removeCheckpoint() and removeTask()", () => {
    const first = wholeCheckpoint("a");
    expect(statSync(first.imagesDir).mode & 0o777).toBe(0o700);
    removeCheckpoint(first);
    expect(listCheckpoints("a")).toEqual([]);
    writeTask(recordOf("a"));
    removeTask("a");
    expect(existsSync(taskDirectory("a"))).toBe(false);
  });
});

describe("relocateImages()", () => {
  it("replaces paths of open files and keeps every other image", async () => {
    const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
    const reg = (id: number, name: string) =>
      entryBytes("file_entry", {
        type: 1,
        id,
        reg: { id, flags: 0, pos: 7n, fown, name, build_id: [] },
      });
    await createTask("a", () => recordOf("a"));
    const from = wholeCheckpoint("a");
    const image = Buffer.concat([headBytes("files"), reg(1, "/logs/a"), reg(2, "/bin/sh")]);
    writeFileSync(join(from.imagesDir, imageName("files")), image);
    createTaskDirectory("b");
    const target = beginCheckpoint({ ...from, task: "b" });
    relocateImages({
      from: from.imagesDir,
      to: target.imagesDir,
      paths: new Map([["/logs/a", "/logs/b"]]),
    });
    using file = new ImageFile(join(target.imagesDir, imageName("files")), "files.img");
    const regs = readEntries(file, "files").map(({ value }) => value.reg);
    expect(regs.map((entry) => [entry?.name, entry?.pos])).toEqual([
      ["/logs/b", 7n],
      ["/bin/sh", 7n],
    ]);
    expect(readFileSync(join(from.imagesDir, imageName("files")))).toEqual(image);
    expect(findCheckpoint("b").number).toBe(1);
  });
});
