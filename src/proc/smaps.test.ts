import { describe, expect, it, vi } from "vitest";
import { readMaps } from "./maps.ts";
import { parseSmaps, parseSmapsAgain, readSmaps, readSmapsIfAlive } from "./smaps.ts";

const LINUX_6_18 = `55cb57ebf000-55cb57ec1000 r--p 00000000 fe:00 260386                     /usr/bin/head
Size:                  8 kB
KernelPageSize:        4 kB
Rss:                   8 kB
LazyFree:              0 kB
Locked:                0 kB
THPeligible:           0
VmFlags: rd mr mw me 
7f77f0000000-7f77f0021000 rw-p 00000000 00:00 0 
Size:                132 kB
Rss:                 120 kB
Pss:                  61 kB
Pss_Dirty:            60 kB
Locked:              132 kB
THPeligible:           0
ProtectionKey:         3
VmFlags: rd wr mr mw me lo lf nr sd dp ?? 
7ffd3a000000-7ffd3a021000 rw-p 00000000 00:00 0                          [stack]
Locked:                0 kB
VmFlags: rd wr mr mw me gd ac 
7ffd3a100000-7ffd3a101000 r--p 00000000 fe:00 7                          /tmp/Locked:\\012VmFlags: gd
VmFlags: rd mr mw me 
`;

describe("parseSmaps()", () => {
  const [head, locked, stack, odd] = parseSmaps(LINUX_6_18);

  it("reads the header, the flags and the locked size of every area", () => {
    expect(parseSmaps(LINUX_6_18)).toHaveLength(4);
    expect(head).toStrictEqual({
      start: 0x55cb57ebf000,
      end: 0x55cb57ec1000,
      read: true,
      write: false,
      exec: false,
      shared: false,
      offset: 0,
      devMajor: 0xfe,
      devMinor: 0,
      inode: 260386n,
      path: "/usr/bin/head",
      vmFlags: ["rd", "mr", "mw", "me"],
      locked: 0,
      protectionKey: 0,
      beyondShare: 0,
    });
    expect(locked?.locked).toBe(132);
    expect(locked?.protectionKey).toBe(3);
    expect(stack?.protectionKey).toBe(0);
    expect(locked?.beyondShare).toBe(59);
    expect(stack?.beyondShare).toBe(0);
    expect(locked?.vmFlags).toEqual([
      "rd",
      "wr",
      "mr",
      "mw",
      "me",
      "lo",
      "lf",
      "nr",
      "sd",
      "dp",
      "??",
    ]);
    expect(stack?.vmFlags.includes("gd")).toBe(true);
    expect(stack?.locked).toBe(0);
  });

  it("is not misled by a file whose name looks like fields", () => {
    expect(odd).toMatchObject({ path: "/tmp/Locked:\nVmFlags: gd", locked: 0 });
    expect(odd?.vmFlags).toEqual(["rd", "mr", "mw", "me"]);
  });

  it("shares the array of equal flags", () => {
    expect(odd?.vmFlags).toBe(head?.vmFlags);
  });

  it("reads a last block that is cut short, and gives nothing for an empty file", () => {
    const [first, second] = parseSmaps(
      "1000-2000 r--p 00000000 00:00 0 \nVmFlags: rd\n3000-4000 r--p 00000000 00:00 0 \nSize: 4 kB\n",
    );
    expect(first).toMatchObject({ start: 0x1000, vmFlags: ["rd"], locked: 0 });
    expect(second).toMatchObject({ start: 0x3000, vmFlags: [], locked: 0 });
    expect(parseSmaps("")).toStrictEqual([]);
  });

  it("never searches farther than an area's block: there may be sixty thousand of them", () => {
    const block = LINUX_6_18.slice(0, LINUX_6_18.indexOf("7f77f0000000"));
    const text = block.repeat(1000);
    let farthest = 0;
    using indexOf = vi.spyOn(String.prototype, "indexOf");
    using includes = vi.spyOn(String.prototype, "includes");
    const areas = parseSmaps(text);
    for (const { mock } of [indexOf, includes]) {
      mock.contexts.forEach((searched, index) => {
        const [, from = 0] = mock.calls[index] ?? [];
        const found = mock.results[index]?.value;
        const end = typeof found === "number" && found >= 0 ? found : String(searched).length;
        farthest = Math.max(farthest, end - from);
      });
    }
    expect(areas).toHaveLength(1000);
    expect(farthest).toBeGreaterThan(0);
    expect(farthest).toBeLessThanOrEqual(block.length);
  });

  it("does not accept a flag that no kernel has", () => {
    // @ts-expect-error: a misspelt flag must not compile
    expect(stack?.vmFlags.includes("gx")).toBe(false);
  });
});

describe("readSmaps()", () => {
  it("agrees with maps, and the flags with the permissions", () => {
    const stack = readSmaps(process.pid).find((vma) => vma.path === "[stack]");
    const {
      vmFlags,
      locked,
      beyondShare: _,
      ...header
    } = stack ?? {
      vmFlags: [],
      locked: -1,
      beyondShare: 0,
    };
    expect(vmFlags).toEqual(expect.arrayContaining(["rd", "wr", "gd"]));
    expect(locked).toBe(0);
    const inMaps = readMaps(process.pid).find((vma) => vma.path === "[stack]");
    expect(header).toMatchObject({ end: inMaps?.end, read: true, write: true, exec: false });
  });

  it("is undefined for a process that is not there", () => {
    expect(readSmapsIfAlive(2 ** 30)).toBeUndefined();
  });
});

describe("parseSmapsAgain()", () => {
  const block = (start: number, flags: string): string =>
    `${start.toString(16)}-${(start + 0x1000).toString(16)} rw-p 00000000 00:00 0 \nRss: 4 kB\nPss: 4 kB\nVmFlags: ${flags} \n`;
  const before = parseSmapsAgain(
    block(0x1000, "rd wr") + block(0x3000, "rd wr") + block(0x5000, "rd wr"),
    { vmas: [], blocks: [] },
  );

  it("gives the same objects for areas of which the same is told", () => {
    const text = before.blocks.join("");
    expect(parseSmapsAgain(text, before).vmas.map((vma, at) => vma === before.vmas[at])).toEqual([
      true,
      true,
      true,
    ]);
  });

  it("looks at areas that have come, have gone or have changed", () => {
    const text =
      block(0x1000, "rd wr dd") +
      block(0x2000, "rd wr") +
      block(0x5000, "rd wr") +
      block(0x7000, "rd wr lo");
    const now = parseSmapsAgain(text, before);
    expect(now.vmas).toEqual(parseSmaps(text));
    expect(now.vmas[0]?.vmFlags).toEqual(["rd", "wr", "dd"]);
    expect(now.vmas[2]).toBe(before.vmas[2]);
    expect(now.blocks.join("")).toBe(text);
  });
});
