// A program for the Java virtual machine: threads that share a monitor and make garbage, a scheduler, and a server that
// tells how they do, a line for a line.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.lang.management.GarbageCollectorMXBean;
import java.lang.management.ManagementFactory;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

public class Work {
  static final Object monitor = new Object();
  static final Map<Integer, String> heap = new HashMap<>();
  static final AtomicLong ticks = new AtomicLong();
  static long turns;
  static volatile Object garbage;

  public static void main(String[] args) throws Exception {
    for (int i = 0; i < 50_000; i++) heap.put(i, "value " + i);
    for (int i = 0; i < 3; i++) new Thread(new Turn(i), "turn-" + i).start();
    Executors.newScheduledThreadPool(2)
        .scheduleAtFixedRate(ticks::incrementAndGet, 0, 10, TimeUnit.MILLISECONDS);
    ServerSocket server = new ServerSocket(Integer.parseInt(args[0]), 8, InetAddress.getByName("127.0.0.1"));
    while (true) {
      Socket client = server.accept();
      new Thread(() -> serve(client)).start();
    }
  }

  /** Each thread waits until it is its turn, so none can be missing. */
  record Turn(int mine) implements Runnable {
    public void run() {
      try {
        while (true) {
          synchronized (monitor) {
            while (turns % 3 != mine) monitor.wait();
            turns++;
            monitor.notifyAll();
          }
          garbage = new byte[64 * 1024];
          Thread.sleep(1);
        }
      } catch (InterruptedException end) {
        throw new IllegalStateException(end);
      }
    }
  }

  static void serve(Socket client) {
    try (BufferedReader in = new BufferedReader(new InputStreamReader(client.getInputStream()));
        PrintWriter out = new PrintWriter(client.getOutputStream(), true)) {
      for (String line; (line = in.readLine()) != null; ) out.println(answer(line));
    } catch (Exception failure) {
      failure.printStackTrace();
    }
  }

  static String answer(String question) {
    switch (question) {
      case "turns":
        synchronized (monitor) {
          return "" + turns;
        }
      case "ticks":
        return "" + ticks.get();
      case "heap":
        int sum = 0;
        for (Map.Entry<Integer, String> entry : heap.entrySet())
          if (entry.getValue().equals("value " + entry.getKey())) sum++;
        return "" + sum;
      case "collect":
        System.gc();
        long count = 0;
        for (GarbageCollectorMXBean bean : ManagementFactory.getGarbageCollectorMXBeans())
          count += bean.getCollectionCount();
        return "" + count;
      default:
        return "what is " + question + "?";
    }
  }
}
