#!/usr/bin/perl
# Keeps a copy of what a raftkv cluster holds, from docs/watch.md alone, with Perl's core modules.
#
#   watch_stranger.pl [--ndjson] HOST:PORT...
#
# A line on the standard input is answered with a line of JSON: the position, whether the copy is
# whole, how often each thing happened, what was against the protocol, and the items. The end of
# the input ends it.
use strict;
use warnings;
use Errno qw(EINTR);
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64;
use Time::HiRes qw(time);

my $ndjson = $ARGV[0] eq '--ndjson' && shift @ARGV;
my @nodes = @ARGV or die "no nodes\n";
my $json = JSON::PP->new->utf8->canonical;
my $silence = 40;                           # seconds after which a connection is dead

my (%copy, %seen, @wrong);
my ($synced, $position, $partial, $retry) = (0, undef, 0, 1);
my $told = 0;                               # the highest revision applied on this stream

sub wrong { push @wrong, join '', @_ if @wrong < 20 }

sub value {
    my ($item) = @_;
    return decode_base64($item->{value_base64}) if defined $item->{value_base64};
    my $value = $item->{value} // do { wrong("no value: ", $json->encode($item)); '' };
    utf8::encode($value);
    return $value;
}

# take applies one message: its name, its id if it has one, and its data.
sub take {
    my ($event, $id, $data) = @_;
    $seen{$event}++;
    $seen{"reset_$data->{code}"}++ if $event eq 'reset';
    if ($event eq 'reset') {
        %copy = ();
        ($synced, $partial, $told) = (0, 0, 0);
        wrong("reset before a state has the id ", $id // 'none') unless defined $id && $id == 0;
    }
    for my $item (@{ $data->{items} || [] }) {
        wrong("state after synced") if $synced;
        wrong("item $item->{key} twice in a state") if exists $copy{$item->{key}};
        wrong("item from the future: ", $json->encode($item)) if $item->{mod_revision} > $data->{revision};
        $copy{ $item->{key} } = $item;
    }
    if ($event eq 'change') {
        my $revision = $data->{revision};
        wrong("change $revision before synced") unless $synced;
        wrong("change $revision behind $told") if $partial ? $revision != $told : $revision <= $told;
        wrong("change $revision behind position $position") if $revision <= $position;
        wrong("change $revision has a wrong id") if $data->{more} ? defined $id : (($id // -1) != $revision);
        wrong("change $revision without events") unless @{ $data->{events} };
        for my $e (@{ $data->{events} }) {
            my ($key, $type) = @$e{qw(key type)};
            $seen{"type_$type"}++;
            if ($type eq 'put') {
                my $old = $copy{$key};
                wrong("put of $key at $revision has mod_revision $e->{mod_revision}") if $e->{mod_revision} != $revision;
                # A part that is told a second time finds its own work.
                if ($old && $old->{mod_revision} < $revision) {
                    wrong("put at $revision: version") if $e->{version} != $old->{version} + 1 || $e->{create_revision} != $old->{create_revision};
                }
                if (!$old) { wrong("put at $revision of a new key: version") if $e->{version} != 1 || $e->{create_revision} != $revision }
                $copy{$key} = $e;
            } else {
                wrong("$type at $revision of $key, which was not there") unless delete $copy{$key} || $seen{again};
            }
        }
        $partial = $data->{more} ? 1 : 0;
        $told = $revision;
    }
    if ($event eq 'synced') {
        wrong("synced has a wrong id") if ($id // -1) != $data->{revision};
        $synced = 1;
    }
    if (defined $id) {
        wrong("position $id behind $position") if $id && defined $position && $id < $position && $event ne 'synced' && $event ne 'reset';
        $position = $id;
        $told = $id if $id > $told;
    }
}

# report answers a line of the standard input.
sub report {
    my @items = map {
        my $item = $_;
        +{ key => $item->{key}, value_base64 => encode_base64(value($item), ''), map { ($_ => ($item->{$_} // 0) + 0) } qw(create_revision mod_revision version lease) }
    } values %copy;
    my $whole = $synced && !$partial ? JSON::PP::true : JSON::PP::false;
    print $json->encode({ position => ($position // 0) + 0, whole => $whole, seen => \%seen, wrong => \@wrong, items => \@items }), "\n";
}

# input reads the standard input, and ends the program with it.
my $requests = '';
sub input {
    my $n = sysread STDIN, $requests, 4096, length $requests;
    exit 0 if !$n;
    report() while $requests =~ s/^[^\n]*\n//;
}

# rest waits, and answers meanwhile.
sub rest {
    my ($until) = (time() + $_[0]);
    while ((my $left = $until - time()) > 0) {
        input() if IO::Select->new(\*STDIN)->can_read($left);
    }
}

# stream reads one answer until it ends, and says why it did.
sub stream {
    my ($node) = @_;
    my $socket = IO::Socket::INET->new(PeerAddr => $node, Timeout => 5) or return "connect: $@";
    my $request = "GET /v1/watch?state=true HTTP/1.1\r\nHost: $node\r\nAccept: " . ($ndjson ? 'application/x-ndjson' : 'text/event-stream') . "\r\n";
    $request .= "Last-Event-ID: $position\r\n" if defined $position;
    syswrite $socket, "$request\r\n" or return "write: $!";
    $seen{again}++ if $partial;    # what was told in part is told again
    ($partial, $told) = (0, $position // 0);
    my ($raw, $body, $head, $left, $heard) = ('', '', undef, 0, time());
    my %block;                     # the event that is being read
    while (1) {
        my @ready = IO::Select->new($socket, \*STDIN)->can_read(1);
        return "nothing for $silence s" if !@ready && time() - $heard > $silence;
        for my $handle (@ready) {
            if ($handle != $socket) { input(); next }
            my $n = sysread $socket, $raw, 65536, length $raw;
            next if !defined $n && $!{EINTR};
            return defined $n ? 'end' : "read: $!" if !$n;
            $heard = time();
            if (!defined $head) {
                $raw =~ s/^(.*?)\r\n\r\n//s or next;
                $head = $1;
                $head =~ m{^HTTP/1\.[01] 200 } or return "status: " . substr $head, 0, 40;
                $head =~ /^Transfer-Encoding: chunked/im or return 'not chunked';
            }
            while (1) {            # chunks: a length, the bytes, an empty line
                if ($left > 2) {
                    my $part = substr $raw, 0, $left - 2, '';
                    last if $part eq '';
                    $body .= $part;
                    $left -= length $part;
                } elsif ($left > 0) {
                    last if length $raw < $left;
                    substr $raw, 0, $left, '';
                    $left = 0;
                } else {
                    $raw =~ s/^([0-9a-fA-F]+)\r\n// or last;
                    return 'end of the body' if hex $1 == 0;
                    $left = 2 + hex $1;
                }
            }
            while ($body =~ s/^([^\n]*)\n//) {
                my $line = $1;
                if ($ndjson) {
                    my $m = $json->decode($line);
                    $retry = $m->{retry} / 1000 if $m->{retry};
                    take($m->{event}, $m->{id}, $m->{data} || {});
                    next;
                }
                if ($line eq '') {
                    my %b = %block;
                    %block = ();
                    if (exists $b{data}) { take($b{event} // 'message', $b{id}, $json->decode($b{data})) }
                    elsif (defined $b{id}) { take('position', $b{id}, {}) }
                } elsif ($line =~ /^:/) {
                    $seen{comment}++;
                } elsif ($line =~ /^(\w+): ?(.*)$/s) {
                    wrong("$1 twice in a block") if exists $block{$1};
                    $block{$1} = $2;
                    $retry = $2 / 1000 if $1 eq 'retry';
                } else { wrong("line: $line") }
            }
        }
    }
}

$| = 1;
$SIG{PIPE} = 'IGNORE';
while (1) {
    my $why = eval { stream($nodes[0]) } // "died: $@";
    wrong($why) if $why =~ /^died|^status: HTTP\/1.1 4/;
    $seen{streams}++;
    print STDERR sprintf("%.3f %s: %s, position %s\n", time(), $nodes[0], $why, $position // 'none');
    push @nodes, shift @nodes;
    rest(($retry > 2 ? 2 : $retry) * (0.5 + rand));
}
