import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { afterAll, expect, it } from "vitest";
import { RepriseError } from "../errors.ts";
import { entryBytes, headBytes, ImageFile, readEntries } from "./image-file.ts";
import {
  encodePagemap,
  PAGE_SIZE,
  PE_PARENT,
  PE_PRESENT,
  readPagemap,
  runOfEntry,
} from "./pagemap.ts";
import type { MessageInput } from "./codec.ts";
import type { PagemapEntry } from "./schema/messages.generated.ts";

const scratch = mkdtempSync(join(tmpdir(), "reprise-pagemap-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function onDisk<T>(bytes: Uint8Array, use: (file: ImageFile) => T): T {
  const path = join(scratch, "pagemap-1.img");
  writeFileSync(path, bytes);
  using file = new ImageFile(path, "pagemap-1.img");
  return use(file);
}

function generalImage(entries: readonly MessageInput<PagemapEntry>[]): Uint8Array {
  return Buffer.concat([
    headBytes("pagemap"),
    entryBytes("pagemap_head", { pages_id: 7 }),
    ...entries.map((entry) => entryBytes("pagemap_entry", entry)),
  ]);
}

const runs = fc.array(
  fc.record({
    vaddr: fc.maxSafeNat(),
    pages: fc.maxSafeNat(),
    flags: fc.integer({ min: 0, max: 7 }),
  }),
  { maxLength: 30 },
);

it("pagemaps are written as the general codec writes them", () => {
  fc.assert(
    fc.property(runs, (list) => {
      const general = generalImage(
        list.map(({ vaddr, pages, flags }) => ({
          vaddr,
          compat_nr_pages: 0,
          flags,
          nr_pages: pages,
        })),
      );
      expect(
        Buffer.from(encodePagemap("pagemap", { pagesId: 7, runs: list })).equals(general),
      ).toBe(true);
    }),
  );
});

it("pagemaps are read as the general codec reads them, old style or new", () => {
  const entry = fc.record(
    {
      vaddr: fc.maxSafeNat(),
      compat_nr_pages: fc.nat(),
      in_parent: fc.boolean(),
      flags: fc.nat(),
      nr_pages: fc.maxSafeNat(),
    },
    { requiredKeys: ["vaddr", "compat_nr_pages"] },
  );
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 20 }), (entries) => {
      onDisk(generalImage(entries), (file) => {
        const general = readEntries(file, "pagemap").slice(1);
        const expected = general.map(({ value }) => runOfEntry(value));
        const found = readPagemap(file, "pagemap").runs;
        expect(found.map(({ vaddr, pages, flags }) => ({ vaddr, pages, flags }))).toEqual(expected);
      });
    }),
  );
});

it("only present runs take room in the pages file", () => {
  const list = [
    { vaddr: 0x1000, pages: 2, flags: PE_PRESENT },
    { vaddr: 0x8000, pages: 5, flags: PE_PARENT },
    { vaddr: 0x20000, pages: 1, flags: PE_PRESENT },
  ];
  const pagemap = onDisk(encodePagemap("pagemap", { pagesId: 3, runs: list }), (file) =>
    readPagemap(file, "pagemap"),
  );
  expect(pagemap.runs.map((run) => run.offset)).toEqual([0, undefined, 2 * PAGE_SIZE]);
  expect(pagemap).toMatchObject({ pagesId: 3, pagesSize: 3 * PAGE_SIZE });
});

it("a field that is not known is an error: its bytes may mean something else", () => {
  const entry = entryBytes("pagemap_entry", { vaddr: 4096, compat_nr_pages: 1 });
  const extended = Buffer.concat([entry, Buffer.from([0x30, 0x01])]);
  extended.writeUInt32LE(entry.length - 4 + 2);
  const image = Buffer.concat([generalImage([]), extended]);
  expect(() => onDisk(image, (file) => readPagemap(file, "pagemap"))).toThrow(RepriseError);
  expect(() => onDisk(image, (file) => readPagemap(file, "pagemap"))).toThrow(
    /entry 1 .*unknown field 6/,
  );
});
