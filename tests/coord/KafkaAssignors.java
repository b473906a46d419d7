// KafkaAssignors data for consumer assignors, produced by Apache Kafka's own Java assignors.
// javac -cp 'libs/*' -d out KafkaAssignors.java && java -cp 'out:libs/*' KafkaAssignors kafka_assignors.json [cases [seed]]   (or: KafkaAssignors probe)
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import java.util.function.Supplier;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.consumer.ConsumerPartitionAssignor.*;
import org.apache.kafka.clients.consumer.internals.ConsumerProtocol;
import org.apache.kafka.common.*;

@SuppressWarnings("removal")
public class KafkaAssignors {
    static final long SEED = 20240848L;
    static Random rnd;

    static final class Member {
        String id, instance;
        List<String> topics = new ArrayList<>();
        List<TopicPartition> owned = new ArrayList<>();
        int generation = -1;                             // of the group, as this member knows it
        StickyAssignor sticky = new StickyAssignor();    // every consumer has its own instances
        CooperativeStickyAssignor coop = new CooperativeStickyAssignor();
    }

    // ---- running Kafka
    static Cluster cluster(Map<String, Integer> partitions) {
        List<PartitionInfo> infos = new ArrayList<>();
        Node n = new Node(0, "h", 9092);
        for (Map.Entry<String, Integer> e : partitions.entrySet())
            for (int p = 0; p < e.getValue(); p++)
                infos.add(new PartitionInfo(e.getKey(), p, n, new Node[]{n}, new Node[]{n}));
        return new Cluster("c", List.of(n), infos, Set.of(), Set.of());
    }

    /** What ConsumerCoordinator does: subscription -> wire -> leader, which puts it in a HashMap. */
    static Subscription wire(Member m, ByteBuffer userData, List<TopicPartition> owned) {
        Subscription s = new Subscription(new ArrayList<>(m.topics), userData, owned, m.generation, Optional.empty());
        Subscription r = ConsumerProtocol.deserializeSubscription(ConsumerProtocol.serializeSubscription(s));
        r.setGroupInstanceId(Optional.ofNullable(m.instance));
        return r;
    }

    static Map<String, List<TopicPartition>> run(ConsumerPartitionAssignor a, Map<String, Integer> partitions, Map<String, Subscription> subs) {
        GroupAssignment ga = a.assign(cluster(partitions), new GroupSubscription(subs));
        Map<String, List<TopicPartition>> r = new HashMap<>();
        ga.groupAssignment().forEach((k, v) -> r.put(k, new ArrayList<>(v.partitions())));
        return r;
    }

    static Map<String, List<TopicPartition>> stateless(ConsumerPartitionAssignor a, Map<String, Integer> partitions, List<Member> ms) {
        Map<String, Subscription> subs = new HashMap<>();
        for (Member m : ms) subs.put(m.id, wire(m, null, List.of()));   // eager: everything revoked before joining
        return run(a, partitions, subs);
    }

    static Map<String, List<TopicPartition>> sticky(Map<String, Integer> partitions, List<Member> ms) {
        Map<String, Subscription> subs = new HashMap<>();
        for (Member m : ms) subs.put(m.id, wire(m, m.sticky.subscriptionUserData(new HashSet<>(m.topics)), List.of()));
        return run(ms.get(0).sticky, partitions, subs);
    }

    static boolean stableSoFar(List<Member> ms, Map<String, List<TopicPartition>> got, Map<String, List<TopicPartition>> have) {
        for (Member m : ms) if (!new HashSet<>(got.get(m.id)).equals(new HashSet<>(have.get(m.id)))) return false;
        return true;
    }

    static int emitted = 0, maxCoopRounds = 0, coopTwo = 0, coopMore = 0;
    static Map<String, List<TopicPartition>> cooperative(Map<String, Integer> partitions, List<Member> ms) {
        Map<String, List<TopicPartition>> have = new HashMap<>();
        Map<String, Integer> gen = new HashMap<>();
        for (Member m : ms) { have.put(m.id, m.owned); gen.put(m.id, m.generation); }
        int g = 1;
        boolean settled = false;
        for (int round = 1; ; round++) {
            Map<String, Subscription> subs = new HashMap<>();
            for (Member m : ms) {
                m.generation = gen.get(m.id);
                // ConsumerCoordinator.onJoinPrepare: partitions of topics no longer subscribed are given up before joining
                List<TopicPartition> own = new ArrayList<>();
                for (TopicPartition tp : have.get(m.id)) if (m.topics.contains(tp.topic())) own.add(tp);
                subs.put(m.id, wire(m, m.coop.subscriptionUserData(new HashSet<>(m.topics)), own));
            }
            Map<String, List<TopicPartition>> got = run(ms.get(0).coop, partitions, subs);
            // never owned twice, and nothing given away while its owner still has it
            Map<TopicPartition, String> owner = new HashMap<>();
            for (Member m : ms) for (TopicPartition tp : subs.get(m.id).ownedPartitions()) owner.put(tp, m.id);
            for (Member m : ms) for (TopicPartition tp : got.get(m.id))
                if (owner.containsKey(tp) && !owner.get(tp).equals(m.id)) throw new IllegalStateException("given away: " + tp);
            boolean stable, revoked = false;   // a real consumer asks for another round only if it had to revoke
            for (Member m : ms) if (!new HashSet<>(got.get(m.id)).containsAll(subs.get(m.id).ownedPartitions())) revoked = true;
            if (settled && !stableSoFar(ms, got, have)) System.out.println("case " + emitted + ": nothing was revoked in the round before, but one more round would change something");
            settled = !revoked;
            stable = stableSoFar(ms, got, have);
            g++;
            for (Member m : ms) {
                Assignment as = new Assignment(got.get(m.id));
                m.coop.onAssignment(as, new ConsumerGroupMetadata("g", g, m.id, Optional.ofNullable(m.instance)));
                have.put(m.id, got.get(m.id));
                gen.put(m.id, g);
            }
            if (stable) {
                int changing = round - 1;   if (changing > 2) System.out.println("case " + emitted + " takes " + changing + " cooperative rounds");   // the last call changed nothing
                maxCoopRounds = Math.max(maxCoopRounds, changing);
                if (changing == 2) coopTwo++;
                if (changing > 2) coopMore++;
                return have;
            }
            if (round > 20) throw new IllegalStateException("cooperative-sticky does not settle");
        }
    }

    static void check(String what, Map<String, Integer> partitions, List<Member> ms, Map<String, List<TopicPartition>> r) {
        Set<TopicPartition> want = new HashSet<>(), got = new HashSet<>();
        int n = 0;
        for (Member m : ms) {
            for (String t : m.topics) for (int p = 0; p < partitions.getOrDefault(t, 0); p++) want.add(new TopicPartition(t, p));
            for (TopicPartition tp : r.get(m.id)) {
                if (!m.topics.contains(tp.topic())) throw new IllegalStateException(what + ": not subscribed " + tp);
                got.add(tp); n++;
            }
        }
        if (!want.equals(got) || n != got.size() || r.size() != ms.size()) throw new IllegalStateException(what + ": not a partition of the partitions");
    }

    // ---- generating
    static int below(int n) { return rnd.nextInt(n); }
    static boolean chance(double p) { return rnd.nextDouble() < p; }
    static <T> T pick(List<T> l) { return l.get(below(l.size())); }

    static String fresh(Set<String> used, String[] prefixes, int range) {
        for (;;) {
            String s = prefixes[below(prefixes.length)] + below(range);
            if (used.add(s)) return s;
        }
    }

    static int count(int max) { double x = rnd.nextDouble(); return Math.min(max, (int) (x * Math.sqrt(x) * (max + 1))); }   // skewed to small

    static List<String> someTopics(List<String> all) {
        List<String> l = new ArrayList<>(all);
        Collections.shuffle(l, rnd);
        return new ArrayList<>(l.subList(0, 1 + below(l.size())));
    }

    static final class Case {
        Map<String, Integer> partitions = new LinkedHashMap<>();
        List<Member> members = new ArrayList<>();
        boolean equal, instances;
        Set<String> ids = new HashSet<>(), insts = new HashSet<>();
        List<String> topics = new ArrayList<>(), common;   // every topic name in play
        int maxP, generation;
        boolean contested;                                 // two members claim one partition, in one generation
    }

    static final String[] MP = {"c", "C", "m-", "c-", "w_"}, IP = {"i", "I-", "a", "z"}, TP = {"t", "T", "o.", "a-", "a_", "t"};

    static Member join(Case c) {
        Member m = new Member();
        m.id = fresh(c.ids, MP, 130);
        if (c.instances && chance(0.5)) m.instance = fresh(c.insts, IP, 130);
        m.topics = c.equal ? new ArrayList<>(c.common) : someTopics(c.topics);
        Collections.shuffle(m.topics, rnd);
        return m;
    }

    static Case generate(boolean equal, boolean instances, int members, int topics, int maxP) {
        Case c = new Case();
        c.equal = equal; c.instances = instances; c.maxP = maxP;
        Set<String> used = new HashSet<>();
        for (int i = 0; i < topics; i++) c.topics.add(fresh(used, TP, topics < 20 ? 15 : 30));
        for (String t : c.topics) if (!chance(0.08)) c.partitions.put(t, count(maxP));   // the others are not known to the cluster
        c.common = chance(0.7) ? new ArrayList<>(c.topics) : someTopics(c.topics);
        for (int i = 0; i < members; i++) c.members.add(join(c));
        Collections.shuffle(c.members, rnd);
        return c;
    }

    static int[] changeCounts = new int[5];   // tried, a few of them in cases not kept
    static void change(Case c, boolean big) {
        boolean changed = false;
        while (!changed) {
            if (chance(0.45) && c.members.size() > 1) {            // leave
                int n = 1 + below(Math.max(1, (big ? c.members.size() / 3 : c.members.size() / 2)));
                for (int i = 0; i < n && c.members.size() > 1; i++) c.members.remove(below(c.members.size()));
                changed = true; changeCounts[0]++;
            }
            if (chance(0.45) && c.members.size() < (big ? 40 : 12)) {   // join
                int n = 1 + below(Math.min(big ? 8 : 3, (big ? 40 : 12) - c.members.size()));
                for (int i = 0; i < n; i++) c.members.add(join(c));
                changed = true; changeCounts[1]++;
            }
            if (chance(0.3)) {                                      // subscriptions
                if (c.equal) {
                    List<String> nt = someTopics(c.topics);
                    if (!new HashSet<>(nt).equals(new HashSet<>(c.common))) {
                        c.common = nt;
                        for (Member m : c.members) { m.topics = new ArrayList<>(nt); Collections.shuffle(m.topics, rnd); }
                        changed = true; changeCounts[2]++;
                    }
                } else {
                    int n = 1 + below(Math.min(4, c.members.size()));
                    for (int i = 0; i < n; i++) {
                        Member m = pick(c.members);
                        List<String> nt = someTopics(c.topics);
                        if (!new HashSet<>(nt).equals(new HashSet<>(m.topics))) { m.topics = nt; changed = true; }
                    }
                    if (changed) changeCounts[2]++;
                }
            }
            if (chance(0.35)) {                                     // more partitions (also of a topic missing or empty before)
                int n = 1 + below(2);
                for (int i = 0; i < n; i++) {
                    String t = pick(c.topics);
                    int now = c.partitions.getOrDefault(t, 0);
                    if (now < c.maxP) { c.partitions.put(t, now + 1 + below(Math.min(6, c.maxP - now))); changed = true; changeCounts[3]++; }
                }
            }
            if (chance(0.05) && c.partitions.size() > 1) {          // a topic was deleted
                c.partitions.remove(pick(new ArrayList<>(c.partitions.keySet())));
                changed = true; changeCounts[4]++;
            }
        }
        Collections.shuffle(c.members, rnd);
    }

    /** Few cases in which there is nothing to share out; 'different' ones are really different; a second round has owners. */
    static boolean wanted(Case c, boolean second) {
        if (!c.equal && c.members.size() > 1) {
            Set<Set<String>> s = new HashSet<>();
            for (Member m : c.members) s.add(new HashSet<>(m.topics));
            if (s.size() == 1) return false;
        }
        if (!c.equal && c.members.size() == 1 && chance(0.7)) return false;
        boolean some = false, owned = false;
        for (Member m : c.members) {
            owned |= !m.owned.isEmpty();
            for (String t : m.topics) some |= c.partitions.getOrDefault(t, 0) > 0;
        }
        return (some || chance(0.3)) && (owned || !second);
    }

    /** Runs one round with the sticky assignor; the members remember what they got, and in which generation. */
    static void round(Case c) {
        Map<String, List<TopicPartition>> r = sticky(c.partitions, c.members);
        check("round", c.partitions, c.members, r);
        c.generation++;
        for (Member m : c.members) { m.owned = r.get(m.id); remember(m, c.generation); }
    }

    static void remember(Member m, int generation) {
        m.generation = generation;
        ConsumerGroupMetadata md = new ConsumerGroupMetadata("g", generation, m.id, Optional.ofNullable(m.instance));
        m.sticky.onAssignment(new Assignment(m.owned), md);
        m.coop.onAssignment(new Assignment(m.owned), md);
    }

    /** Some members of the latest generation claim a few partitions of others, too. */
    static void contest(Case c) {
        List<Member> ms = new ArrayList<>();
        List<TopicPartition> tps = new ArrayList<>();
        for (Member m : c.members) if (m.generation == c.generation) { ms.add(m); tps.addAll(m.owned); }
        if (ms.size() < 2 || tps.isEmpty()) return;
        for (int i = 1 + below(3); i > 0; i--) {
            Member m = pick(ms);
            TopicPartition tp = pick(tps);
            if (m.owned.contains(tp)) continue;
            m.owned = new ArrayList<>(m.owned);
            m.owned.add(tp);
            remember(m, c.generation);
            c.contested = true;
        }
    }

    // ---- output
    static String q(String s) { return s == null ? "null" : '"' + s + '"'; }
    /** {"topic":[0,2],...}, topics and partitions in the order in which they first come. */
    static String tps(List<TopicPartition> l) {
        Map<String, StringJoiner> byTopic = new LinkedHashMap<>();
        for (TopicPartition tp : l) byTopic.computeIfAbsent(tp.topic(), t -> new StringJoiner(",", "[", "]")).add("" + tp.partition());
        StringJoiner j = new StringJoiner(",", "{", "}");
        byTopic.forEach((t, n) -> j.add(q(t) + ":" + n));
        return j.toString();
    }
    static String full(List<Member> ms, Map<String, List<TopicPartition>> r) {
        StringJoiner j = new StringJoiner(",", "{", "}");
        for (Member m : ms) j.add(q(m.id) + ":" + tps(r.get(m.id)));
        return j.toString();
    }

    /** Kafka's own promise: who has 2 or more fewer than another cannot get any of the other's partitions. */
    static boolean improvable(Case c, Map<String, List<TopicPartition>> r) {
        for (Member a : c.members) for (Member b : c.members)
            if (r.get(a.id).size() + 1 < r.get(b.id).size())
                for (TopicPartition tp : r.get(b.id)) if (a.topics.contains(tp.topic())) return true;
        return false;
    }

    static int differ = 0;
    static String emit(Case c) {
        Map<String, List<TopicPartition>> range = stateless(new RangeAssignor(), c.partitions, c.members);
        Map<String, List<TopicPartition>> rr = stateless(new RoundRobinAssignor(), c.partitions, c.members);
        Map<String, List<TopicPartition>> st = sticky(c.partitions, c.members);
        Map<String, List<TopicPartition>> co = c.contested ? st : cooperative(c.partitions, c.members);
        check("range", c.partitions, c.members, range);
        check("roundrobin", c.partitions, c.members, rr);
        check("sticky", c.partitions, c.members, st);
        check("cooperative-sticky", c.partitions, c.members, co);
        if (improvable(c, st) || improvable(c, co)) System.out.println("case " + emitted + " a single move would balance better: sticky " + improvable(c, st) + ", cooperative " + improvable(c, co));
        boolean same = stableSoFar(c.members, st, co);
        if (!same) differ++;
        StringJoiner pj = new StringJoiner(",", "{", "}"), mj = new StringJoiner(",", "[", "]");
        c.partitions.forEach((t, n) -> pj.add(q(t) + ":" + n));
        for (Member m : c.members) {
            StringJoiner tj = new StringJoiner(",", "[", "]");
            m.topics.forEach(t -> tj.add(q(t)));
            mj.add("{\"id\":" + q(m.id) + ",\"instance\":" + q(m.instance) + ",\"topics\":" + tj + ",\"owned\":" + tps(m.owned) + "}");
        }
        return "{\"partitions\":" + pj + ",\"members\":" + mj + ",\"range\":" + full(c.members, range) + ",\"roundrobin\":" + full(c.members, rr)
            + ",\"sticky\":" + full(c.members, st) + (same ? "" : ",\"cooperative-sticky\":" + full(c.members, co)) + "}";
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("probe")) { Probe.main(); return; }
        int cases = args.length > 1 ? Integer.parseInt(args[1]) : 300;
        rnd = new Random(args.length > 2 ? Long.parseLong(args[2]) : SEED);
        List<String> out = new ArrayList<>();
        for (int i = 0; i < cases; i++) {
            boolean later = i % 8 >= 3, equal = i % 2 == 0, inst = i % 3 == 0, big = i % 67 == 66;
            Case c;
            do {
                c = big ? generate(equal, inst, 25 + below(16), 10 + below(6), 4)
                        : generate(equal, inst, 1 + below(chance(0.2) ? 12 : 5), (equal ? 1 : 2) + below(chance(0.7) ? 3 : equal ? 8 : 7), chance(0.12) ? 20 : chance(0.5) ? 7 : 10);
                for (int n = later ? 1 + below(3) : 0; n > 0; n--) { round(c); change(c, big); }
                if (later && (i % 16 == 5 || i % 16 == 12)) contest(c);
            } while (!wanted(c, later));
            out.add(emit(c)); emitted++;
        }
        Files.write(Paths.get(args[0]), ("[" + String.join(",\n", out) + "]\n").getBytes(StandardCharsets.UTF_8));
        System.out.println("cases " + out.size() + "; changes leave/join/subscribe/partitions/deleted " + Arrays.toString(changeCounts)
            + "; cooperative: most changing rounds " + maxCoopRounds + ", two rounds in " + coopTwo + ", more in " + coopMore
            + "; sticky and cooperative differ in " + differ);
    }

    // ---- questions, not part of the golden data
    static final class Probe {
        static TopicPartition tp(String t, int p) { return new TopicPartition(t, p); }
        static Member m(String id, int gen, List<String> topics, TopicPartition... owned) {
            Member m = new Member();
            m.id = id; m.topics = topics; m.generation = gen; m.owned = new ArrayList<>(List.of(owned));
            if (gen >= 0) {
                ConsumerGroupMetadata md = new ConsumerGroupMetadata("g", gen, id, Optional.empty());
                m.sticky.onAssignment(new Assignment(m.owned), md);
                m.coop.onAssignment(new Assignment(m.owned), md);
            }
            return m;
        }
        static Map<String, List<TopicPartition>> coopOnce(Map<String, Integer> parts, List<Member> ms) {
            Map<String, Subscription> subs = new HashMap<>();
            for (Member m : ms) subs.put(m.id, wire(m, m.coop.subscriptionUserData(new HashSet<>(m.topics)), m.owned));
            return run(ms.get(0).coop, parts, subs);
        }
        static void both(String title, Map<String, Integer> parts, Supplier<List<Member>> s) {
            System.out.println(title);
            try { System.out.println("   sticky      " + new TreeMap<>(sticky(parts, s.get()))); } catch (Exception e) { System.out.println("   sticky      " + e); }
            try { System.out.println("   coop 1 call " + new TreeMap<>(coopOnce(parts, s.get()))); } catch (Exception e) { System.out.println("   coop        " + e); }
        }
        static void main() {
            List<String> t = List.of("t"), tu = List.of("t", "u");
            for (boolean eq : new boolean[]{true, false}) {
                List<String> other = eq ? t : tu;
                String k = eq ? "equal: " : "different: ";
                both(k + "A(gen2) and B(gen2) both own t0,t1; t has 4", Map.of("t", 4), () -> List.of(m("A", 2, t, tp("t", 0), tp("t", 1)), m("B", 2, other, tp("t", 0), tp("t", 1))));
                both(k + "A(gen1) owns t0,t1; B(gen2) owns t0,t1", Map.of("t", 4), () -> List.of(m("A", 1, t, tp("t", 0), tp("t", 1)), m("B", 2, other, tp("t", 0), tp("t", 1))));
                both(k + "A(gen2) owns t0,t1; B(gen1) owns t0,t1", Map.of("t", 4), () -> List.of(m("A", 2, t, tp("t", 0), tp("t", 1)), m("B", 1, other, tp("t", 0), tp("t", 1))));
                both(k + "A(gen1) owns t0,t1; B(gen2) owns t2,t3: an old claim that nobody contests", Map.of("t", 4), () -> List.of(m("A", 1, t, tp("t", 0), tp("t", 1)), m("B", 2, other, tp("t", 2), tp("t", 3))));
                both(k + "A, B, C (gen2) all own t0", Map.of("t", 4), () -> List.of(m("A", 2, t, tp("t", 0)), m("B", 2, other, tp("t", 0)), m("C", 2, t, tp("t", 0))));
                both(k + "A(gen2) owns t0,t5; t shrank to 2", Map.of("t", 2), () -> List.of(m("A", 2, t, tp("t", 0), tp("t", 5)), m("B", 2, other, tp("t", 1))));
                both(k + "A(gen2) owns t5; t shrank to 2", Map.of("t", 2), () -> List.of(m("A", 2, t, tp("t", 5)), m("B", -1, other)));
                both(k + "A(gen2) owns t0,t1,t2,t3; B new", Map.of("t", 4), () -> List.of(m("A", 2, t, tp("t", 0), tp("t", 1), tp("t", 2), tp("t", 3)), m("B", -1, other)));
            }
            both("different: A(gen2) and B(gen2) both own t0,t1, C is new and has t: who keeps them", Map.of("t", 3), () -> List.of(m("A", 2, t, tp("t", 0), tp("t", 1)), m("B", 2, tu, tp("t", 0), tp("t", 1)), m("C", -1, t)));
            both("equal, one call: A(gen2) has t0,t1 B(gen2) t2, and B does not know its generation (-1)", Map.of("t", 3), () -> List.of(m("A", 2, t, tp("t", 0), tp("t", 1)), m("B", -1, t, tp("t", 2))));
            both("A subscribes to t, B to nothing", Map.of("t", 3), () -> List.of(m("A", -1, t), m("B", -1, List.of())));
            both("A subscribes to nothing (first in the map), B to t", Map.of("t", 3), () -> List.of(m("A", -1, List.of()), m("B", -1, t)));
            Map<String, Integer> ab = new TreeMap<>(); for (String x : List.of("t9", "t10", "t2", "orders", "A", "b", "a.b")) ab.put(x, 1);
            List<String> abt = new ArrayList<>(ab.keySet());
            System.out.println("range over topics " + stateless(new RangeAssignor(), ab, List.of(m("A", -1, abt))));
            System.out.println("roundrobin over topics " + stateless(new RoundRobinAssignor(), ab, List.of(m("A", -1, abt))));
            List<Member> st = List.of(m("a", -1, t), m("z", -1, t), m("b", -1, t), m("y", -1, t));
            st.get(1).instance = "i2"; st.get(3).instance = "i1";
            System.out.println("members a, z(i2), b, y(i1), t has 5: range " + stateless(new RangeAssignor(), Map.of("t", 5), st) + " roundrobin " + stateless(new RoundRobinAssignor(), Map.of("t", 5), st)
                + " sticky " + sticky(Map.of("t", 5), st));
        }
    }
}
