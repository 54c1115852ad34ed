import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { loadGhost, loadImageSet } from "./check-set.ts";
import { entryBytes } from "./image-file.ts";
import { ImageSetReader, ImageSetWriter } from "./image-set.ts";
import { MANIFEST_NAME } from "./manifest.ts";
import { IMAGE_KINDS, imageName, parseImageName, type ImageKind } from "./names.ts";
import { PE_PRESENT } from "./pagemap.ts";

const FIXTURES = join(import.meta.dirname, "../../test/fixtures/criu-images");
const scratch = mkdtempSync(join(tmpdir(), "reprise-set-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const INVENTORY = { img_version: 2, fdinfo_per_id: true };
const PSTREE = { pid: 7, ppid: 0, pgid: 7, sid: 7, threads: [7] };

let count = 0;
function newDir(): string {
  count += 1;
  return join(scratch, `set-${count}`);
}

function writeSmallSet(dir: string, pid = 7): void {
  const set = new ImageSetWriter(dir, { sync: "none" });
  set.write("pstree", 0, [{ ...PSTREE, pid }]);
  const runs = [{ vaddr: 4096, pages: 1, flags: PE_PRESENT }];
  set.writePagemap("pagemap", pid, { pagesId: 1, runs });
  using pages = set.openRaw("pages", 1);
  pages.write(new Uint8Array(4096).fill(pid));
  pages.close();
  set.commit(INVENTORY);
}

describe("a set that is written", () => {
  it("is read again, private to its owner, and complete", () => {
    const dir = newDir();
    writeSmallSet(dir);
    const set = new ImageSetReader(dir);
    set.verify();
    expect(set.read("pstree")).toEqual([PSTREE]);
    expect(set.readPagemap("pagemap", 7)).toMatchObject({ pagesId: 1, pagesSize: 4096 });
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    for (const name of readdirSync(dir)) expect(statSync(join(dir, name)).mode & 0o777).toBe(0o600);
    expect(readdirSync(dir).sort()).toEqual(
      ["inventory.img", "pagemap-7.img", "pages-1.img", "pstree.img", MANIFEST_NAME].sort(),
    );
  });

  it("has no inventory before commit, nor one of an earlier dump", () => {
    const dir = newDir();
    writeSmallSet(dir);
    const set = new ImageSetWriter(dir);
    set.write("pstree", 0, [PSTREE]);
    expect(existsSync(join(dir, "inventory.img"))).toBe(false);
    expect(() => new ImageSetReader(dir)).toThrow(
      expect.objectContaining({ code: "IMAGE_MISSING" }),
    );
    set.commit(INVENTORY);
    expect(existsSync(join(dir, "inventory.img"))).toBe(true);
  });

  it("leaves nothing when it is given up", () => {
    const dir = newDir();
    const set = new ImageSetWriter(dir);
    writeFileSync(join(dir, "mine.txt"), "");
    set.write("pstree", 0, [PSTREE]);
    set.open("pipes-data").add({ pipe_id: 1, bytes: 0 });
    set.abort();
    expect(readdirSync(dir)).toEqual(["mine.txt"]);
  });

  it("does not have what an earlier dump left in the directory", () => {
    const dir = newDir();
    writeSmallSet(dir, 7);
    const old = new ImageSetWriter(dir);
    old.write("remap-fpath", 0, [{ orig_id: 1, remap_id: 1 }]);
    old.commit(INVENTORY);
    expect(new ImageSetReader(dir).has("remap-fpath")).toBe(true);
    writeSmallSet(dir, 7);
    expect(existsSync(join(dir, "remap-fpath.img"))).toBe(true);
    expect(new ImageSetReader(dir).has("remap-fpath")).toBe(false);
    expect(new ImageSetReader(dir).read("remap-fpath")).toEqual([]);
  });

  it("keeps payload behind its entry", () => {
    const dir = newDir();
    const set = new ImageSetWriter(dir, { sync: "none" });
    const ghost = set.open("ghost-file", 0x1f);
    ghost.add({ uid: 0, gid: 0, mode: 0o100600, chunks: true, size: 100 });
    ghost.ghostChunk({ len: 3, off: 90 });
    ghost.payload(Buffer.from("abc"));
    ghost.close();
    const queues = set.open("ipcns-msg", 11);
    const desc = { key: 1, uid: 0, gid: 0, cuid: 0, cgid: 0, mode: 0o600, id: 0 };
    queues.add({ desc, qbytes: 100, qnum: 2 });
    queues.queueMessage({ mtype: 5n, msize: 13 }, Buffer.from("thirteen byte"));
    queues.queueMessage({ mtype: 6n, msize: 1 }, Buffer.from("x"));
    queues.add({ desc, qbytes: 100, qnum: 0 });
    queues.close();
    const semaphores = set.open("ipcns-sem", 11);
    for (const nsems of [3, 1]) {
      semaphores.add({ desc, nsems });
      semaphores.payload(new Uint8Array(nsems * 2).fill(9));
      semaphores.pad(8);
    }
    semaphores.close();
    set.commit(INVENTORY);

    const reader = new ImageSetReader(dir);
    expect(existsSync(join(dir, "ghost-file-1f.img"))).toBe(true);
    using file = reader.openRaw("ghost-file", 0x1f);
    const [chunk] = loadGhost(reader, 0x1f).payload;
    expect(chunk).toMatchObject({ at: 90, length: 3 });
    expect(Buffer.from(file.bytes(chunk?.offset ?? 0, 3)).toString()).toBe("abc");
    const [first, second] = reader.readWithPayload("ipcns-msg", 11);
    expect(first?.payload.map((part) => part.message?.mtype)).toEqual([5n, 6n]);
    expect(second?.payload).toEqual([]);
    const parts = reader.readWithPayload("ipcns-sem", 11).map((entry) => entry.payload[0]?.length);
    expect(parts).toEqual([6, 2]);
  });
});

describe("a set that is wrong", () => {
  it("names the file that is changed, cut off, missing or of another set", () => {
    const dir = newDir();
    writeSmallSet(dir);
    const other = newDir();
    writeSmallSet(other, 8);
    writeFileSync(join(dir, "pages-1.img"), readFileSync(join(other, "pages-1.img")));
    expect(() => new ImageSetReader(dir).verify()).toThrow(
      /pages-1.img was changed or is from another/,
    );
    truncateSync(join(dir, "pstree.img"), 9);
    expect(() => new ImageSetReader(dir).verify()).toThrow(
      /pstree.img is cut off at 9 of \d+ bytes/,
    );
    rmSync(join(dir, "pagemap-7.img"));
    expect(() => new ImageSetReader(dir).verify()).toThrow(/pagemap-7.img is missing/);
  });

  it("names file, entry and offset of a cut, and what a missing file is for", () => {
    const dir = newDir();
    writeSmallSet(dir);
    rmSync(join(dir, MANIFEST_NAME));
    truncateSync(join(dir, "pstree.img"), 15);
    const set = new ImageSetReader(dir);
    expect(() => set.read("pstree")).toThrow(
      /pstree.img: entry 0 at offset 8: \d+ bytes run beyond/,
    );
    writeFileSync(join(dir, "pstree.img"), readFileSync(join(dir, "pagemap-7.img")));
    expect(() => set.read("pstree")).toThrow(/pstree.img: wrong magic PAGEMAP, not PSTREE/);
    expect(() => set.readOne("mm", 7)).toThrow(
      "cannot find image mm-7.img: the memory mappings of a task",
    );
  });

  it("of a later version, or too old, is refused as that", () => {
    for (const inventory of [{ img_version: 3 }, { img_version: 2, root_ids: undefined }]) {
      const dir = newDir();
      new ImageSetWriter(dir, { sync: "none" }).commit(inventory);
      expect(() => loadImageSet(new ImageSetReader(dir))).toThrow(
        expect.objectContaining({ code: "IMAGE_VERSION" }),
      );
    }
  });

  it("with seccomp filters in a circle is refused", () => {
    const dir = newDir();
    cpSync(join(FIXTURES, "seccomp/img"), dir, { recursive: true });
    const filter = new Uint8Array(8);
    const seccomp_filters = [
      { filter, prev: 1 },
      { filter, prev: 2 },
      { filter, prev: 0 },
    ];
    const head = readFileSync(join(dir, "seccomp.img")).subarray(0, 8);
    const entry = entryBytes("seccomp_entry", { seccomp_filters });
    writeFileSync(join(dir, "seccomp.img"), Buffer.concat([head, entry]));
    expect(() => loadImageSet(new ImageSetReader(dir))).toThrow(/filter 0 has no end/);
  });

  it("with parents in a circle ends", () => {
    const dir = newDir();
    writeSmallSet(dir);
    symlinkSync(".", join(dir, "parent"));
    const walk = () => {
      let set: ImageSetReader | undefined = new ImageSetReader(dir);
      while (set !== undefined) set = set.parent();
    };
    expect(walk).toThrow(/more than 1000/);
  });
});

describe("sets of CRIU", () => {
  it("of format 1.0, without the common head, are read", () => {
    const dir = newDir();
    mkdirSync(dir);
    const img = join(FIXTURES, "tiny/img");
    for (const name of readdirSync(img)) {
      const bytes = readFileSync(join(img, name));
      const bare = bytes.readUInt32LE(0) === 0x54564319 ? bytes.subarray(4) : bytes;
      writeFileSync(join(dir, name), bare);
    }
    const inventory = join(dir, "inventory.img");
    const bytes = readFileSync(inventory);
    expect(bytes[8]).toBe(8);
    bytes[9] = 1;
    writeFileSync(inventory, bytes);
    expect([...loadImageSet(new ImageSetReader(dir)).tasks.keys()]).toEqual([12845]);
  });

  it("load whole, with zombies, threads and stopped tasks", () => {
    const set = loadImageSet(new ImageSetReader(join(FIXTURES, "threads-pipes/img")));
    expect(set.rootPid).toBe(14152);
    expect([...(set.tasks.get(14152)?.threads.keys() ?? [])]).toEqual([14152, 14168, 14169, 14170]);
    expect(set.tasks.get(14165)).toMatchObject({ isZombie: true, live: undefined });
    expect(set.tasks.get(14167)?.core.tc?.stop_signo).toBe(19);
    expect(set.pipesData.map((entry) => entry.payload[0]?.length)).toEqual([11, 5000]);
  });

  it("load with the parent set that their pages are in, and fail without it", () => {
    const set = new ImageSetReader(join(FIXTURES, "chain/img/2"));
    expect(loadImageSet(set).tasks.size).toBe(2);
    expect(set.parent()?.isPreDump).toBe(true);
    expect(set.parent()?.parent()).toBeUndefined();
    expect(() => loadImageSet(new ImageSetReader(join(FIXTURES, "chain/img/1")))).toThrow(
      /pre-dump/,
    );
    const alone = newDir();
    mkdirSync(alone);
    for (const name of readdirSync(set.dir)) {
      if (name !== "parent") writeFileSync(join(alone, name), readFileSync(join(set.dir, name)));
    }
    expect(() => loadImageSet(new ImageSetReader(alone))).toThrow(
      /in the parent set, which is not there/,
    );
  });
});

it("file names are parsed back to kind and number", () => {
  for (const kind of Object.keys(IMAGE_KINDS) as ImageKind[]) {
    const id = IMAGE_KINDS[kind].number === "none" ? 0 : 0x1ab;
    expect(parseImageName(imageName(kind, id))).toEqual({ kind, id });
  }
  expect(imageName("tmpfs-dev", 59)).toBe("tmpfs-dev-59.tar.gz.img");
  expect(parseImageName("core-1x.img")).toBeUndefined();
  expect(parseImageName("core-01.img")).toBeUndefined();
  expect(parseImageName("dump.log")).toBeUndefined();
});
